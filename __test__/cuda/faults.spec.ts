/** What goes wrong between ranks with GPUs is a typed error on every rank that is left, in time, and never a hang. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'

import type { Outcome, SeenError } from '../distributed/ranks.ts'
import { runOnGpus, type Backend } from './ranks.ts'
import { onCuda } from './support.ts'

/** Milliseconds that a rank waits for others in these tests. */
const TIMEOUT = 4000
/** A process that ends, and calls that differ, are noticed long before the deadline. */
const NOTICED = 2500
/** A rank that is stopped for 2.5 timeouts, and what starting Node takes. */
const RUN_DEADLINE = 3 * TIMEOUT + 25_000

const run = <T>(scenario: string, size: number, args: object = {}, backend: Backend = 'nccl'): Promise<Outcome<T>[]> =>
  runOnGpus<T>(`cuda/faults.${scenario}`, size, {
    backend,
    deadline: RUN_DEADLINE,
    failuresExpected: true,
    args: { timeout: TIMEOUT, ...args },
  })

function sees(t: ExecutionContext, error: SeenError | undefined, codes: readonly string[], within: number): void {
  t.true(codes.includes(error?.code ?? ''), `${error?.code}: ${error?.message}`)
  t.true((error?.after ?? Infinity) < within, `after ${error?.after} ms: ${error?.message}`)
}

const AFTERWARDS = ['ERR_GROUP_POISONED', 'ERR_PEER_LOST', 'ERR_TIMEOUT', 'ERR_MISMATCH', 'ERR_ABORTED']

interface Fault {
  first: SeenError
  then: SeenError
}

interface Channels {
  error: SeenError
  before: number[]
  after: number[]
  batches: number
}

onCuda('faults between ranks with GPUs', () => {
  for (const scenario of ['dieInForward', 'dieInBackward', 'dieInAllReduce']) {
    test.serial(`survivors of ${scenario} notice at once and end`, async (t) => {
      const outcomes = await run<Fault>(scenario, 3, { culprit: 1, timeout: 20_000 })
      t.is(outcomes[1]?.signal, 'SIGKILL')
      for (const rank of [0, 2]) {
        const { value, exitCode, output } = outcomes[rank]!
        sees(t, value?.first, ['ERR_PEER_LOST'], NOTICED)
        t.is(value?.first.name, 'PeerLostError')
        sees(t, value?.then, AFTERWARDS, NOTICED)
        t.is(exitCode, 0, output)
      }
      t.true(
        [0, 2].some((rank) => /\b1\b/.test(outcomes[rank]?.value?.first.message ?? '')),
        'the lost rank is named',
      )
    })
  }

  for (const scenario of ['stopInForward', 'stopInAllReduce']) {
    test.serial(`ranks that wait for one of ${scenario} stop at the deadline`, async (t) => {
      const outcomes = await run<Fault>(scenario, 3, { culprit: 2 })
      for (const rank of [0, 1]) {
        const { value, exitCode, output } = outcomes[rank]!
        sees(t, value?.first, ['ERR_TIMEOUT', 'ERR_PEER_LOST', 'ERR_ABORTED'], 2 * TIMEOUT)
        sees(t, value?.then, AFTERWARDS, 2 * TIMEOUT)
        t.is(exitCode, 0, output)
      }
      t.true(
        outcomes.some(({ value }) => value?.first?.code === 'ERR_TIMEOUT'),
        'somebody waited to the deadline',
      )
    })
  }

  test.serial('over TCP, too, survivors notice at once and ranks that disagree learn of it', async (t) => {
    const outcomes = await run<Fault>('dieInForward', 3, { culprit: 1, timeout: 20_000 }, 'tcp')
    for (const rank of [0, 2]) {
      sees(t, outcomes[rank]?.value?.first, ['ERR_PEER_LOST'], NOTICED)
      sees(t, outcomes[rank]?.value?.then, AFTERWARDS, NOTICED)
    }
    for (const { value } of await run<Channels>('otherChannels', 2, {}, 'tcp')) {
      sees(t, value?.error, ['ERR_MISMATCH'], NOTICED)
      t.deepEqual(value?.after, value?.before)
    }
  })

  const differences = {
    otherSizes: /8.*9|9.*8/,
    otherCollective: /all_reduce.*broadcast/,
    otherDType: /float32.*int32/,
  }
  for (const [scenario, message] of Object.entries(differences)) {
    test.serial(`${scenario}: both ranks learn of both calls`, async (t) => {
      for (const { value, exitCode, output } of await run<{ error: SeenError; then: SeenError }>(scenario, 2)) {
        sees(t, value?.error, ['ERR_MISMATCH'], NOTICED)
        t.is(value?.error.name, 'MismatchError')
        t.regex(value?.error.message ?? '', message)
        sees(t, value?.then, AFTERWARDS, NOTICED)
        t.is(exitCode, 0, output)
      }
    })
  }

  test.serial('ranks that disagree on the channels learn of both, and keep their statistics', async (t) => {
    for (const { value } of await run<Channels>('otherChannels', 2)) {
      sees(t, value?.error, ['ERR_MISMATCH'], NOTICED)
      t.deepEqual(value?.after, value?.before)
      t.is(value?.batches, 0)
    }
  })

  test.serial('once the failed group is destroyed, the device computes on, and the ranks can meet again', async (t) => {
    interface Recovery {
      error: SeenError
      local: number
      together: number
    }
    const folder = mkdtempSync(join(tmpdir(), 'syncbn-recovery-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    for (const { value, output } of await run<Recovery>('recovery', 2, { store: join(folder, 'store') })) {
      sees(t, value?.error, ['ERR_MISMATCH'], NOTICED)
      t.is(value?.local, 6, output)
      t.is(value?.together, 12, output)
    }
  })
})
