/** What goes wrong between ranks is a typed error on every rank that is left, in time, and never a hang. */
import { createServer, connect } from 'node:net'

import test, { type ExecutionContext } from 'ava'

import { freePort, runRanks, valuesOf, type Outcome, type RunOptions, type SeenError } from './distributed/ranks.ts'

/** Milliseconds that a rank waits for others in these tests. */
const TIMEOUT = 3000
/** A process that ends is noticed by its closed connection, long before the deadline. */
const NOTICED = 1500
/** Twice the deadline for the whole run, and what starting Node takes. */
const RUN_DEADLINE = 2 * TIMEOUT + 20_000

const run = <T>(scenario: string, size: number, options: RunOptions = {}): Promise<Outcome<T>[]> =>
  runRanks(scenario, size, {
    deadline: RUN_DEADLINE,
    failuresExpected: true,
    ...options,
    args: { timeout: TIMEOUT, ...(options.args as object | undefined) },
  })

function sees(
  t: ExecutionContext,
  error: SeenError | undefined,
  name: string,
  codes: string | string[],
  within: number,
): void {
  t.is(error?.name, name, error?.message)
  t.true([codes].flat().includes(error?.code ?? ''), `${error?.code}: ${error?.message}`)
  t.true((error?.after ?? Infinity) < within, `after ${error?.after} ms: ${error?.message}`)
}

interface Meeting {
  error: SeenError
  size: number
}

test.serial('a rank that never comes is named', async (t) => {
  const [first, second, third] = await run<Meeting>('faults.meet', 3, { args: { delay: [0, 0, 3 * TIMEOUT] } })
  for (const outcome of [first, second]) {
    sees(t, outcome?.value?.error, 'TimeoutError', 'ERR_TIMEOUT', 2 * TIMEOUT)
    t.regex(outcome?.value?.error.message ?? '', /\b2\b/)
  }
  t.not(third?.value?.size, 3)
})

test.serial('a missing variable is named', async (t) => {
  for (const missing of ['MASTER_ADDR', 'MASTER_PORT', 'RANK', 'WORLD_SIZE']) {
    const [outcome] = await run<Meeting>('faults.meet', 1, { env: () => ({ WORLD_SIZE: '2', [missing]: undefined }) })
    sees(t, outcome?.value?.error, 'DistributedError', 'ERR_ENVIRONMENT', NOTICED)
    t.regex(outcome?.value?.error.message ?? '', new RegExp(missing))
  }
})

test.serial('a variable that is no number is named', async (t) => {
  const [outcome] = await run<Meeting>('faults.meet', 1, { env: () => ({ RANK: 'first' }) })
  sees(t, outcome?.value?.error, 'DistributedError', 'ERR_ENVIRONMENT', NOTICED)
  t.regex(outcome?.value?.error.message ?? '', /RANK.*first/)
})

test.serial('a rank outside the world is refused', async (t) => {
  const [outcome] = await run<Meeting>('faults.meet', 1, { env: () => ({ RANK: '5' }) })
  sees(t, outcome?.value?.error, 'ArgumentError', 'ERR_ARGUMENT', NOTICED)
  t.regex(outcome?.value?.error.message ?? '', /5/)
})

test.serial('two ranks of one number do not meet', async (t) => {
  const outcomes = await run<Meeting>('faults.meet', 3, { env: (rank) => ({ RANK: String(Math.min(rank, 1)) }) })
  for (const { value } of outcomes) {
    t.is(value?.size, 0)
    t.true((value?.error.after ?? Infinity) < 2 * TIMEOUT)
  }
  t.true(outcomes.some(({ value }) => value?.error.code === 'ERR_RENDEZVOUS'))
})

test.serial('ranks of worlds of different sizes do not meet', async (t) => {
  const outcomes = await run<Meeting>('faults.meet', 2, { env: (rank) => ({ WORLD_SIZE: String(2 + rank) }) })
  for (const { value } of outcomes) {
    t.is(value?.size, 0)
    t.true((value?.error.after ?? Infinity) < 2 * TIMEOUT)
  }
  t.true(outcomes.some(({ value }) => value?.error.code === 'ERR_RENDEZVOUS'))
})

test.serial('a rank with another token stays out and disturbs nobody', async (t) => {
  const outcomes = await run<Meeting>('faults.meet', 3, {
    env: (rank) => ({
      SYNCBN_TOKEN: rank === 2 ? 'other' : 'token',
      WORLD_SIZE: '2',
      RANK: String(Math.min(rank, 1)),
      TEST_DELAY: rank === 1 ? '3000' : '0',
    }),
    args: { timeout: 3 * TIMEOUT },
  })
  t.deepEqual(
    outcomes.slice(0, 2).map(({ value }) => value?.size),
    [2, 2],
  )
  sees(t, outcomes[2]?.value?.error, 'DistributedError', 'ERR_TOKEN_REJECTED', 2 * TIMEOUT)
})

test.serial('bytes of strangers on the port disturb nobody', async (t) => {
  const port = await freePort()
  const strangers: ReturnType<typeof connect>[] = []
  const onStage = (rank: number): void => {
    if (rank !== 0) return
    for (const text of ['GET / HTTP/1.1\r\n\r\n', '\0'.repeat(4096), '\xff'.repeat(100_000), '']) {
      setTimeout(() => {
        const stranger = connect(port, '127.0.0.1', () => stranger.write(Buffer.from(text, 'latin1')))
        strangers.push(stranger.on('error', () => {}))
      }, 300)
    }
  }
  const outcomes = await run<Meeting>('faults.meet', 2, { port, onStage, args: { delay: [0, 2000] } })
  strangers.forEach((stranger) => stranger.destroy())
  t.is(strangers.length, 4)
  t.deepEqual(
    outcomes.map(({ value }) => value?.size),
    [2, 2],
    outcomes.map(({ value }) => value?.error.message).join('\n'),
  )
})

test.serial('a port that is taken', async (t) => {
  const server = createServer((socket) => socket.on('error', () => {}))
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  const [first, second] = await run<Meeting>('faults.meet', 2, { port })
  server.close()
  sees(t, first?.value?.error, 'DistributedError', 'ERR_ADDRESS_IN_USE', NOTICED)
  t.regex(first?.value?.error.message ?? '', new RegExp(String(port)))
  t.is(second?.value?.size, 0)
  t.true((second?.value?.error.after ?? Infinity) < 2 * TIMEOUT)
})

test.serial('a rank that is killed in the rendezvous', async (t) => {
  const outcomes = await run<SeenError>('faults.dieInRendezvous', 3, { args: { culprit: 1 } })
  t.is(outcomes[1]?.signal, 'SIGKILL')
  for (const rank of [0, 2]) {
    const error = outcomes[rank]?.value
    t.true(['ERR_PEER_LOST', 'ERR_TIMEOUT', 'ERR_RENDEZVOUS'].includes(error?.code ?? ''), error?.message)
    t.true((error?.after ?? Infinity) < 2 * TIMEOUT)
  }
})

test.serial('a rendezvous that its signal aborts', async (t) => {
  const [outcome] = await run<SeenError>('faults.abortRendezvous', 1, { env: () => ({ WORLD_SIZE: '2' }) })
  sees(t, outcome?.value, 'DistributedError', 'ERR_ABORTED', NOTICED)
})

interface Fault {
  first: SeenError
  then: SeenError
}

for (const scenario of ['dieInForward', 'dieInBackward', 'dieInAllReduce', 'leaveInForward']) {
  test.serial(`survivors of ${scenario} notice at once`, async (t) => {
    const outcomes = await run<Fault>(`faults.${scenario}`, 3, {
      args: { culprit: 1, timeout: 30_000 },
      deadline: 40_000,
    })
    for (const rank of [0, 2]) {
      const value = outcomes[rank]?.value
      sees(t, value?.first, 'PeerLostError', 'ERR_PEER_LOST', NOTICED)
      t.regex(value?.first.message ?? '', /\b1\b/, 'the lost rank is named')
      t.true(['ERR_GROUP_POISONED', 'ERR_PEER_LOST'].includes(value?.then.code ?? ''), value?.then.message)
      t.true((value?.then.after ?? Infinity) < NOTICED)
    }
  })
}

for (const scenario of ['hangInForward', 'hangInAllReduce']) {
  test.serial(`ranks that wait for one of ${scenario} stop at the deadline`, async (t) => {
    const outcomes = await run<Fault>(`faults.${scenario}`, 3, { args: { culprit: 2 } })
    for (const rank of [0, 1]) {
      const value = outcomes[rank]?.value
      // The first to give up leaves the group, which the next may notice before its own deadline.
      t.true(['ERR_TIMEOUT', 'ERR_PEER_LOST', 'ERR_ABORTED'].includes(value?.first.code ?? ''), value?.first.message)
      t.true((value?.first.after ?? Infinity) < 2 * TIMEOUT, `after ${value?.first.after} ms`)
    }
    const timeouts = outcomes.filter(({ value }) => value?.first?.code === 'ERR_TIMEOUT')
    t.true(timeouts.length > 0)
    for (const { value } of timeouts) t.regex(value?.first.message ?? '', /\b2\b/, 'the missing rank is named')
  })
}

test.serial('a monitored barrier names who is missing', async (t) => {
  const outcomes = await run<SeenError>('faults.missBarrier', 3, { args: { culprit: 1 } })
  const error = outcomes[0]?.value
  sees(t, error, 'TimeoutError', 'ERR_TIMEOUT', 2 * TIMEOUT)
  t.regex(error?.message ?? '', /\b1\b/)
})

test.serial('ranks that disagree on the channels both learn of both, and keep their statistics', async (t) => {
  const outcomes = await run<{ error: SeenError; unchanged: boolean }>('faults.otherChannels', 2)
  for (const { value } of outcomes) {
    sees(t, value?.error, 'MismatchError', 'ERR_MISMATCH', NOTICED)
    t.true(value?.unchanged)
  }
})

test.serial('ranks that disagree on the next collective both learn of both', async (t) => {
  const outcomes = await run<{ error: SeenError; then: SeenError }>('faults.otherCollective', 2)
  for (const { value } of outcomes) {
    sees(t, value?.error, 'MismatchError', 'ERR_MISMATCH', NOTICED)
    t.regex(value?.error.message ?? '', /all_?reduce/i)
    t.regex(value?.error.message ?? '', /barrier/i)
    t.is(value?.then.code, 'ERR_GROUP_POISONED', value?.then.message)
  }
})

test.serial('ranks that disagree on the parameters learn which', async (t) => {
  const outcomes = await run<SeenError>('faults.otherParameters', 2)
  for (const { value } of outcomes) {
    sees(t, value, 'MismatchError', 'ERR_PARAMETER_MISMATCH', NOTICED)
    t.regex(value?.message ?? '', /weight/)
  }
})

test.serial('ranks that disagree on a new group', async (t) => {
  const outcomes = await run<SeenError>('faults.otherGroup', 2)
  for (const { value } of outcomes) sees(t, value, 'MismatchError', 'ERR_MISMATCH', 2 * TIMEOUT)
})

test.serial('healthy ranks see none of this', async (t) => {
  const values = await valuesOf<Meeting>('faults.meet', 4, { args: { timeout: 20_000 } })
  t.deepEqual(
    values.map(({ size, error }) => [size, error.code]),
    Array(4).fill([4, 'no error']),
  )
})
