/** What goes wrong between ranks with GPUs is a typed error on every rank that is left, in time, and never a hang. */
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Worker } from 'node:worker_threads'

import test, { type ExecutionContext } from 'ava'

import { freePort, type Outcome, type SeenError } from '../distributed/ranks.ts'
import { runOnGpus, type Backend } from './ranks.ts'
import { devicesTest, fakesTest, onCuda } from './support.ts'

/** Milliseconds that a rank waits for others in these tests. */
const TIMEOUT = 4000
/** A process that ends, and calls that differ, are noticed long before the deadline. */
const NOTICED = 2500
/** A rank that is stopped for 2.5 timeouts, and what starting Node takes. */
const RUN_DEADLINE = 3 * TIMEOUT + 45_000

/** How long an abort is waited for. */
const ABORT = 10_000
/** How long a wait for a GPU goes on that has failed. */
const LOST = 15_000
/** Ending a thread must not take longer than this. */
const PROMPT = 5000

type Variables = (rank: number) => Record<string, string | undefined>

const run = <T>(
  scenario: string,
  size: number,
  args: object = {},
  backend: Backend = 'nccl',
  env: Variables = () => ({}),
): Promise<Outcome<T>[]> =>
  runOnGpus<T>(`cuda/faults.${scenario}`, size, {
    backend,
    deadline: RUN_DEADLINE,
    failuresExpected: true,
    args: { timeout: TIMEOUT, ...args },
    env,
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

  interface Met {
    error: SeenError
    backend: string | null
  }

  fakesTest('an NCCL that is too old is refused with both versions, and left alone without a wish', async (t) => {
    const old: Variables = () => ({ FAKE_NCCL_VERSION: '21805' })
    for (const { value, output } of await run<Met>('meet', 2, {}, 'nccl', old)) {
      t.is(value?.error.code, 'ERR_BACKEND_UNAVAILABLE', output)
      t.regex(value?.error.message ?? '', /NCCL 2\.20\.3 or newer expected, got 2\.18\.5/)
    }
    for (const { value } of await run<Met>('meet', 2, {}, null, old)) t.is(value?.backend, 'tcp')
  })

  fakesTest('ranks with different versions of NCCL learn of both', async (t) => {
    const versions: Variables = (rank) => ({ FAKE_NCCL_VERSION: rank === 0 ? '22003' : '23003' })
    for (const { value, output } of await run<Met>('meet', 2, {}, 'nccl', versions)) {
      t.is(value?.error.code, 'ERR_MISMATCH', output)
      t.regex(value?.error.message ?? '', /rank 0 has NCCL 2\.20\.3 and rank 1 has NCCL 2\.30\.3/)
    }
  })

  fakesTest('where NCCL fails on one rank the others learn why', async (t) => {
    const outcomes = await run<Met>('meet', 2, { timeout: 20_000 }, 'nccl', (rank) => ({
      FAKE_NCCL_FAIL_AFTER: rank === 0 ? '0' : undefined,
    }))
    sees(t, outcomes[0]?.value?.error, ['ERR_NCCL'], NOTICED)
    sees(t, outcomes[1]?.value?.error, ['ERR_ABORTED'], NOTICED)
    t.regex(outcomes[1]?.value?.error.message ?? '', /rank 0 aborted.*ncclCommInitRankConfig.*told to fail/)
  })

  fakesTest('a rank whose NCCL fails tells the others before an abort that never returns', async (t) => {
    const outcomes = await run<SeenError>('localFailure', 2, { timeout: 20_000 }, 'nccl', (rank) =>
      rank === 0 ? { FAKE_NCCL_FAIL_AFTER: '3', FAKE_NCCL_STUCK_ABORT: '1' } : {},
    )
    sees(t, outcomes[0]?.value, ['ERR_NCCL', 'ERR_ABORTED'], ABORT + NOTICED)
    sees(t, outcomes[1]?.value, ['ERR_ABORTED'], NOTICED)
    t.regex(outcomes[1]?.value?.message ?? '', /rank 0 aborted the group 'default': nccl/)
  })

  fakesTest('an abort that never returns keeps the tensors, and nothing else waits for it', async (t) => {
    interface Stuck {
      late: SeenError
      blocked: SeenError
      used: SeenError
      told: SeenError
      destroyed: number
      local: SeenError
    }
    const [waiting, idle] = await run<Stuck>('stuckAbort', 2, {}, 'nccl', (rank) =>
      rank === 0 ? { FAKE_NCCL_STUCK_ABORT: '1' } : {},
    )
    sees(t, waiting?.value?.late, ['ERR_TIMEOUT'], 2 * TIMEOUT)
    sees(t, waiting?.value?.blocked, ['ERR_TIMEOUT'], LOST + NOTICED)
    t.is(waiting?.value?.used.code, 'ERR_IN_USE', 'the kernel may still write to it')
    sees(t, waiting?.value?.local, ['ERR_TIMEOUT'], LOST + NOTICED)
    t.true((waiting?.value?.destroyed ?? Infinity) < ABORT + NOTICED, `${waiting?.value?.destroyed} ms`)
    t.is(waiting?.exitCode, 0, waiting?.output)
    sees(t, idle?.value?.told, ['ERR_TIMEOUT'], NOTICED)
  })

  fakesTest('a call that waits inside NCCL for a rank that does not come ends', async (t) => {
    interface First {
      error: SeenError
      sum: number | null
    }
    const blocks: Variables = () => ({ FAKE_NCCL_BLOCK_FIRST: '1' })
    for (const { value, output } of await run<First>('firstCall', 2, {}, 'nccl', blocks)) t.is(value?.sum, 8, output)
    const [caller] = await run<First>('firstCall', 2, { culprit: 1 }, 'nccl', blocks)
    sees(t, caller?.value?.error, ['ERR_TIMEOUT'], TIMEOUT + ABORT)
    t.is(caller?.exitCode, 0, caller?.output)
  })

  test.serial(
    'a rank that leaves early neither fails nor faults the others, which notice if they need it',
    async (t) => {
      interface Left {
        left: SeenError
        took: number
        alone: string[]
        needed: SeenError
        after: SeenError
        local: number
      }
      const outcomes = await run<Left>('leaveEarly', 3)
      for (const { rank, value, exitCode, output } of outcomes) {
        t.is(value?.left.code, 'no error', output)
        t.true((value?.took ?? Infinity) < TIMEOUT, 'it waits half of the timeout')
        t.is(exitCode, 0, output)
        if (rank === 1) continue
        t.deepEqual(value?.alone, ['no error'])
        sees(t, value?.needed, ['ERR_PEER_LOST'], NOTICED)
        t.regex(value?.needed.message ?? '', /rank 1 left/)
        t.is(value?.after.code, 'no error', 'the call was never made')
        t.is(value?.local, 6)
      }
    },
  )

  for (const subgroup of [false, true]) {
    test.serial(
      `SYNCBN_DEBUG=detail: the call itself throws, in ${subgroup ? 'a subgroup' : 'the default group'}`,
      async (t) => {
        const debug: Variables = () => ({ SYNCBN_DEBUG: 'detail' })
        for (const { value, output } of await run<SeenError>('detail', 2, { subgroup }, 'nccl', debug)) {
          sees(t, value, ['ERR_MISMATCH'], NOTICED)
          t.regex(value?.message ?? '', /8.*9/, output)
        }
      },
    )
  }

  devicesTest(2, 'terminate() ends threads whose collectives hang, of a subgroup and behind it', async (t) => {
    const initMethod = `tcp://127.0.0.1:${await freePort()}`
    const script = new URL('./group-in-thread.mjs', import.meta.url)
    const workers = [0, 1].map(
      (rank) => new Worker(script, { workerData: { rank, initMethod, device: `cuda:${rank}` } }),
    )
    await Promise.all(workers.map((worker) => once(worker, 'message')))
    await new Promise((resolve) => setTimeout(resolve, 200))
    const start = performance.now()
    await workers[0]?.terminate()
    await workers[1]?.terminate()
    const took = performance.now() - start
    t.true(took < PROMPT, `${took} ms`)
  })
})
