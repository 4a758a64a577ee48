/** DistributedDataParallel: several ranks train as one process would. */
import test from 'ava'

import { valuesOf, type SeenError } from './distributed/ranks.ts'
import type { State } from './distributed/scenarios/training.ts'

const STEPS = 20
const TOLERANCE = 1e-4
/** What local statistics must differ by at least, or this test would prove nothing. */
const VISIBLE = 1e-2

function largestDifference(expected: State, actual: State): number {
  let largest = 0
  for (const [name, values] of Object.entries(expected)) {
    const others = actual[name] ?? []
    values.forEach((value, i) => {
      const difference = Math.abs(value - (others[i] ?? NaN))
      if (!(difference <= largest)) largest = difference
    })
  }
  return largest
}

test.serial('twenty steps on 2 and 4 ranks equal one process; with local statistics they do not', async (t) => {
  const args = { norm: 'sync', steps: STEPS }
  const [single] = await valuesOf<State>('training.convNetSteps', 1, { args: { ...args, norm: 'local' } })
  for (const size of [2, 4]) {
    const states = await valuesOf<State>('training.convNetSteps', size, { args })
    t.deepEqual(Object.keys(states[0] as State), Object.keys(single as State))
    for (const state of states) {
      const difference = largestDifference(single as State, state)
      t.true(difference <= TOLERANCE, `${size} ranks: ${difference}`)
      t.deepEqual(state, states[0], 'every parameter and buffer has the same bits on every rank')
    }
  }
  const [local] = await valuesOf<State>('training.convNetSteps', 4, { args: { ...args, norm: 'local' } })
  const difference = largestDifference(single as State, local as State)
  t.true(difference >= VISIBLE, `local statistics differ by ${difference}`)
})

interface Averaging {
  start: number[]
  averaged: number[]
  local: number[]
  accumulated: number[]
  twoForwards: number[]
  afterNoGrad: number[]
  keys: string[]
}

test.serial('gradients are averaged; inside noSync they stay local and accumulate', async (t) => {
  const values = await valuesOf<Averaging>('training.averaging', 2)
  values.forEach((value, rank) => {
    t.deepEqual(value, {
      start: [2],
      averaged: [1.5],
      local: [rank + 1],
      accumulated: [16.5],
      twoForwards: [2.5],
      afterNoGrad: [0.5],
      keys: ['module.inner.weight'],
    })
  })
})

test.serial('one rank may evaluate alone', async (t) => {
  t.deepEqual(await valuesOf('training.evaluateAlone', 2), [true, true])
})

interface Unused {
  error: SeenError
  once: number[][]
  twice: number[][]
}

test.serial('parameters without a gradient are an error that names them ...', async (t) => {
  for (const [rank, { error }] of (
    await valuesOf<Unused>('training.unusedParameters', 2, { args: { find: false } })
  ).entries()) {
    t.like(error, { name: 'AutogradError', code: 'ERR_UNUSED_PARAMETERS' })
    t.regex(error.message, /third\.weight/)
    t.regex(error.message, rank === 0 ? /second\.weight/ : /first\.weight/)
    t.regex(error.message, /findUnusedParameters/)
  }
})

test.serial('... unless findUnusedParameters is on', async (t) => {
  for (const { error, once, twice } of await valuesOf<Unused>('training.unusedParameters', 2, {
    args: { find: true },
  })) {
    t.is(error.code, 'no error', error.message)
    t.deepEqual(once, [[0.5, 0.5], [0.5, 1], []])
    // Without zeroGrad, the second step adds as much again.
    t.deepEqual(twice, [[1, 1], [1, 2], []])
  }
})

test.serial('a backward that fails leaves the next one alone', async (t) => {
  for (const { error, gradient } of await valuesOf<{ error: SeenError; gradient: number[] }>(
    'training.failedBackward',
    2,
  )) {
    t.is(error.name, 'AutogradError')
    t.deepEqual(gradient, [3])
  }
})

test.serial('buffers are those of rank 0, or one’s own, or everybody’s', async (t) => {
  const run = (norm: string, broadcastBuffers: boolean): Promise<State[]> =>
    valuesOf<State>('training.buffers', 2, { args: { norm, broadcastBuffers } })
  const [first, second] = await run('local', true)
  t.deepEqual(first, second)
  const own = await run('local', false)
  t.notDeepEqual(own[0]?.['module.running_mean'], own[1]?.['module.running_mean'])
  for (const flag of [true, false]) {
    const [a, b] = await run('sync', flag)
    t.deepEqual(a, b)
  }
})

test.serial('the constructor refuses what cannot work', async (t) => {
  for (const value of await valuesOf<Record<string, SeenError>>('training.refusals', 1)) {
    t.like(value.outside, { name: 'DistributedError', code: 'ERR_NOT_INITIALIZED' })
    t.like(value.frozen, { name: 'ArgumentError', code: 'ERR_ARGUMENT' })
    t.like(value.devices, { name: 'ArgumentError', code: 'ERR_ARGUMENT' })
    t.like(value.cuda, { name: 'DeviceError', code: 'ERR_DEVICE' })
    t.like(value.bucket, { name: 'ArgumentError', code: 'ERR_ARGUMENT' })
  }
})
