/** Training on ranks with GPUs is training on one CPU; recorded, too. */
import test from 'ava'

import { valuesOf, type SeenError } from '../distributed/ranks.ts'
import type { State } from '../distributed/scenarios/training.ts'
import { valuesOnGpus } from './ranks.ts'
import { devicesTest, onCuda } from './support.ts'

const STEPS = 5
/** Sums in float32 on another device and in other parts; five steps let them grow. */
const TOLERANCE = 1e-4

function largestDifference(expected: State, actual: State): number {
  let largest = 0
  for (const [name, values] of Object.entries(expected)) {
    values.forEach((value, i) => {
      const difference = Math.abs(value - (actual[name]?.[i] ?? NaN))
      if (!(difference <= largest)) largest = difference
    })
  }
  return largest
}

interface Captured {
  losses: number[]
  state: State
}

onCuda('training on ranks with GPUs', () => {
  for (const backend of ['nccl', 'tcp'] as const) {
    test.serial(
      `${backend}: gradients in bfloat16 are averaged in float32, running statistics are float32`,
      async (t) => {
        const values = await valuesOnGpus<object>('cuda/training.halfGradients', 4, { backend })
        const dtypes = ['bfloat16', 'bfloat16', 'float32', 'float32']
        // (256 + 1 + 1 + 1) / 4 = 64.75 is 65 in bfloat16; summed in bfloat16 it would be 64.
        for (const value of values) t.deepEqual(value, { dtypes, bias: 65, runningMean: Math.fround(0.15) })
      },
    )
  }

  devicesTest(3, 'a rank whose module is on another GPU is named on every rank, before anybody waits', async (t) => {
    interface Misplaced {
      parameters: SeenError
      buffers: SeenError
      ids: SeenError
      onCpu: SeenError
      seconds: number
    }
    const values = await valuesOnGpus<Misplaced>('cuda/training.misplacedRank', 2, { backend: 'nccl' })
    for (const [rank, { parameters, buffers, ids, onCpu, seconds }] of values.entries()) {
      for (const error of [parameters, buffers, ids]) {
        t.is(error.code, 'ERR_DEVICE', error.message)
        t.true(error.message.includes(rank === 1 ? 'cuda:1' : 'rank 1 cannot take part'), error.message)
      }
      t.is(onCpu.code, 'ERR_PARAMETER_MISMATCH', onCpu.message)
      t.regex(onCpu.message, /rank 1 has .* on cpu/)
      t.true(seconds < 10, `${seconds} s`)
    }
  })

  for (const backend of ['nccl', 'tcp'] as const) {
    test.serial(`${backend}: five steps on 1, 2 and 4 ranks equal one process on the CPU`, async (t) => {
      const args = { norm: 'sync', steps: STEPS }
      const [single] = await valuesOf<State>('training.convNetSteps', 1, { args: { ...args, norm: 'local' } })
      for (const size of [1, 2, 4]) {
        const states = await valuesOnGpus<State>('training.convNetSteps', size, { backend, args })
        t.deepEqual(Object.keys(states[0]!), Object.keys(single!))
        for (const state of states) {
          const difference = largestDifference(single!, state)
          t.true(difference <= TOLERANCE, `${size} ranks: ${difference}`)
          t.deepEqual(state, states[0], 'every parameter and buffer has the same bits on every rank')
        }
      }
    })

    test.serial(`${backend}: averages, noSync, unused parameters, buffers`, async (t) => {
      interface Averaging {
        averaged: number[]
        accumulated: number[]
        twoForwards: number[]
      }
      for (const value of await valuesOnGpus<Averaging>('training.averaging', 2, { backend })) {
        t.like(value, { averaged: [1.5], accumulated: [16.5], twoForwards: [2.5] })
      }
      const unused = { backend, args: { find: true } }
      for (const { error, twice } of await valuesOnGpus<{ error: SeenError; twice: number[][] }>(
        'training.unusedParameters',
        2,
        unused,
      )) {
        t.is(error.code, 'no error', error.message)
        t.deepEqual(twice, [[1, 1], [1, 2], []])
      }
      for (const norm of ['local', 'sync']) {
        const args = { norm, broadcastBuffers: true }
        const [first, second] = await valuesOnGpus<State>('training.buffers', 2, { backend, args })
        t.deepEqual(first, second)
      }
      t.deepEqual(await valuesOnGpus('training.evaluateAlone', 2, { backend }), [true, true])
    })
  }

  for (const optimizer of ['SGD', 'AdamW']) {
    for (const size of [1, 2]) {
      test.serial(
        `${optimizer}, ${size} ranks: a recorded step, one rank without samples, trains as the plain one`,
        async (t) => {
          const args = { optimizer, warmup: 2, steps: STEPS }
          const run = (captured: boolean) =>
            valuesOnGpus<Captured>('cuda/training.capturedSteps', size, {
              backend: 'nccl',
              args: { ...args, captured },
            })
          const [plain, replayed] = [await run(false), await run(true)]
          const tolerance = optimizer === 'AdamW' ? 1e-5 : 0
          plain.forEach((expected, rank) => {
            const actual = replayed[rank]!
            t.true(largestDifference(expected.state, actual.state) <= tolerance, `rank ${rank}`)
            actual.losses.forEach((loss, i) =>
              t.true(Math.abs(loss - expected.losses[i]!) <= tolerance * (1 + Math.abs(loss)), `loss ${i}: ${loss}`),
            )
            t.deepEqual(actual.state, replayed[0]!.state, 'the same bits on every rank')
          })
        },
      )
    }
  }

  test.serial(
    'a capture refuses findUnusedParameters, and exchanges over TCP; training goes on afterwards',
    async (t) => {
      interface Refusals {
        backend: string
        unused: SeenError
        exchanged: SeenError
        gradients: number
        host: Record<string, SeenError>
      }
      for (const backend of ['nccl', 'tcp'] as const) {
        for (const value of await valuesOnGpus<Refusals>('cuda/training.refusals', 2, { backend })) {
          t.like(value.unused, { name: 'DeviceError', code: 'ERR_CAPTURE' }, value.unused.message)
          t.regex(value.unused.message, /findUnusedParameters/)
          const code = backend === 'nccl' ? 'no error' : 'ERR_CAPTURE'
          t.is(value.exchanged.code, code, value.exchanged.message)
          t.is(value.gradients, 10)
          t.is(Object.keys(value.host).length, 6)
          for (const [name, error] of Object.entries(value.host))
            t.is(error.code, 'ERR_CAPTURE', `${name}: ${error.message}`)
        }
      }
    },
  )

  test.serial('a group is left while a recording holds its collectives', async (t) => {
    interface Leaving {
      seconds: number
      replayed: SeenError
      same: boolean
    }
    for (const { seconds, replayed, same } of await valuesOnGpus<Leaving>('cuda/training.leaving', 2, {
      backend: 'nccl',
    })) {
      t.true(seconds < 5, `${seconds} s`)
      t.like(replayed, { name: 'DistributedError', code: 'ERR_ABORTED' }, replayed.message)
      t.true(same, 'what was computed stays')
    }
  })
})
