/** Things that go wrong on purpose; every function says what this rank saw. */
import {
  allReduce,
  barrier,
  destroyProcessGroup,
  DistributedDataParallel,
  getRank,
  Linear,
  monitoredBarrier,
  newGroup,
  randn,
  SyncBatchNorm,
  type Module,
} from 'syncbn'

import { device, join } from '../place.ts'
import { seen } from '../seen-error.ts'
import type { Report } from '../worker.ts'

export interface FaultArguments {
  /** Milliseconds. */
  timeout: number
  /** The rank that misbehaves. */
  culprit?: number
  /** Milliseconds before a rank starts; TEST_DELAY in its environment goes before. */
  delay?: number[]
}

const sleep = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds))
const ownRank = (): number => Number(process.env.RANK)
/** Holds this thread, event loop and all, as a stuck native call would. */
const hang = (milliseconds: number): unknown =>
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds)
const dieAtOnce = (): void => process.kill(process.pid, 'SIGKILL') as unknown as void

/** Only the rendezvous. */
export async function meet({ timeout, delay }: FaultArguments, report: Report): Promise<unknown> {
  await sleep(Number(process.env.TEST_DELAY ?? delay?.[ownRank()] ?? 0))
  await report('meeting')
  let size = 0
  const error = await seen(async () => {
    size = (await join({ timeout })).size
  })
  if (size > 0) await destroyProcessGroup()
  return { error, size }
}

export async function dieInRendezvous({ timeout, culprit }: FaultArguments): Promise<unknown> {
  const rank = ownRank()
  // The last rank comes late, so that the culprit dies in the middle of the meeting.
  if (rank === Number(process.env.WORLD_SIZE) - 1) await sleep(timeout / 3)
  if (rank === culprit) setTimeout(dieAtOnce, timeout / 6)
  return seen(() => join({ timeout }))
}

export async function abortRendezvous({ timeout }: FaultArguments): Promise<unknown> {
  return seen(() => join({ timeout, signal: AbortSignal.timeout(300) }))
}

function exchange(where: string, model: Module): void {
  const input = randn([3, 4], { device, requiresGrad: true })
  if (where === 'allReduce') return allReduce(new Float32Array(1 << 20)).wait()
  const output = model.call(input)
  if (where === 'backward') output.sum().backward()
}

async function misbehave(where: string, { timeout, culprit }: FaultArguments, act: () => unknown): Promise<unknown> {
  const { rank } = await join({ timeout })
  const model = new SyncBatchNorm(4, { device })
  exchange(where, model) // a good round first
  const input = randn([3, 4], { device, requiresGrad: true })
  const output = where === 'backward' ? model.call(input) : null
  if (rank === culprit) return act()
  const first = await seen(() => (output ? output.sum().backward() : exchange(where, model)))
  const then = await seen(() => allReduce(new Float32Array(1)).wait())
  return { first, then }
}

export const dieInForward = (args: FaultArguments): Promise<unknown> => misbehave('forward', args, dieAtOnce)
export const dieInBackward = (args: FaultArguments): Promise<unknown> => misbehave('backward', args, dieAtOnce)
export const dieInAllReduce = (args: FaultArguments): Promise<unknown> => misbehave('allReduce', args, dieAtOnce)
export const hangInForward = (args: FaultArguments): Promise<unknown> =>
  misbehave('forward', args, () => hang(args.timeout * 2))
export const hangInAllReduce = (args: FaultArguments): Promise<unknown> =>
  misbehave('allReduce', args, () => hang(args.timeout * 2))

/** A rank that throws in its own code ends its process; the others must notice as soon as when it is killed. */
export const leaveInForward = (args: FaultArguments): Promise<unknown> =>
  misbehave('forward', args, () => process.exit(0))

export async function missBarrier({ timeout, culprit }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout: timeout * 4 })
  if (rank === culprit) return hang(timeout * 2)
  return seen(() => monitoredBarrier({ timeout }).wait())
}

export async function otherChannels({ timeout }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout })
  const layer = new SyncBatchNorm(rank === 0 ? 4 : 5, { device })
  const input = randn([2, layer.numFeatures], { device })
  const before = await layer.runningMean?.data()
  const error = await seen(() => layer.call(input))
  return { error, unchanged: JSON.stringify(before) === JSON.stringify(await layer.runningMean?.data()) }
}

export async function otherCollective({ timeout }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout })
  const error = await seen(() => (rank === 0 ? allReduce(new Float32Array(8)) : barrier()).wait())
  return { error, then: await seen(() => barrier().wait()) }
}

export async function otherParameters({ timeout }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout })
  const error = await seen(() => new DistributedDataParallel(new Linear(3, rank === 1 ? 5 : 4, { device })))
  return error
}

export async function otherGroup({ timeout }: FaultArguments): Promise<unknown> {
  await join({ timeout })
  const error = await seen(() => newGroup(getRank() === 0 ? [0] : [0, 1]))
  // Rank 0 carries the others' messages: it stays until they have read them.
  await sleep(500)
  return error
}
