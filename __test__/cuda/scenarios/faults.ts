/** Things that go wrong on purpose between ranks with GPUs; every function says what this rank saw. */
import { spawn } from 'node:child_process'

import {
  allReduce,
  broadcast,
  cuda,
  destroyProcessGroup,
  full,
  newGroup,
  randn,
  SyncBatchNorm,
  zeros,
  type Module,
} from 'syncbn'

import { device, join } from '../../distributed/place.ts'
import { seen } from '../../distributed/seen-error.ts'

export interface FaultArguments {
  /** Milliseconds. */
  timeout: number
  /** The rank that misbehaves. */
  culprit?: number
}

/** Milliseconds after which a round that is over here is over on every rank. */
const SETTLED = 500

/** What a kernel or a collective reports is seen by whoever waits for the device. */
const settle = (): Promise<void> => cuda.synchronize(device)

function exchange(where: string, model: Module): void {
  if (where === 'allReduce') return allReduce(full([1 << 14], 1, { device })).wait()
  const output = model.call(randn([3, 4], { device, requiresGrad: true }))
  if (where === 'backward') output.sum().backward()
}

async function misbehave(where: string, { timeout, culprit }: FaultArguments, act: () => unknown): Promise<unknown> {
  const { rank } = await join({ timeout })
  const model = new SyncBatchNorm(4, { device })
  exchange(where, model) // a good round first
  await settle()
  if (rank === culprit) {
    // The others may still be waiting for the good round, which is to be over for everybody.
    await new Promise((resolve) => setTimeout(resolve, SETTLED))
    return act()
  }
  const attempt = async (): Promise<void> => {
    exchange(where, model)
    await settle()
  }
  const first = await seen(attempt)
  const then = await seen(attempt)
  return { first, then }
}

const dieAtOnce = (): unknown => process.kill(process.pid, 'SIGKILL')

/** Stops every thread of this process; somebody else wakes it up so that it can end. */
const stop = (milliseconds: number): unknown => {
  spawn('sh', ['-c', `sleep ${milliseconds / 1000}; kill -CONT ${process.pid}`], { stdio: 'ignore' })
  process.kill(process.pid, 'SIGSTOP')
  return 'woken'
}

export const dieInForward = (args: FaultArguments): Promise<unknown> => misbehave('forward', args, dieAtOnce)
export const dieInBackward = (args: FaultArguments): Promise<unknown> => misbehave('backward', args, dieAtOnce)
export const dieInAllReduce = (args: FaultArguments): Promise<unknown> => misbehave('allReduce', args, dieAtOnce)
export const stopInForward = (args: FaultArguments): Promise<unknown> =>
  misbehave('forward', args, () => stop(args.timeout * 2.5))
export const stopInAllReduce = (args: FaultArguments): Promise<unknown> =>
  misbehave('allReduce', args, () => stop(args.timeout * 2.5))

async function disagree(timeout: number, call: (rank: number) => unknown): Promise<unknown> {
  const { rank } = await join({ timeout })
  const error = await seen(async () => {
    await call(rank)
    await settle()
  })
  const then = await seen(async () => {
    allReduce(zeros([1], { device })).wait()
    await settle()
  })
  return { error, then }
}

export const otherSizes = ({ timeout }: FaultArguments): Promise<unknown> =>
  disagree(timeout, (rank) => allReduce(zeros([8 + rank], { device })).wait())

export const otherCollective = ({ timeout }: FaultArguments): Promise<unknown> =>
  disagree(timeout, (rank) => {
    const data = zeros([8], { device })
    return (rank === 0 ? allReduce(data) : broadcast(data, { src: 0 })).wait()
  })

export const otherDType = ({ timeout }: FaultArguments): Promise<unknown> =>
  disagree(timeout, (rank) => allReduce(zeros([8], { device, dtype: rank === 0 ? 'float32' : 'int32' })).wait())

/** Ranks that disagree on the channels; the running statistics are read once the group is gone. */
export async function otherChannels({ timeout }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout })
  const layer = new SyncBatchNorm(rank === 0 ? 4 : 5, { device })
  const before = [...((await layer.runningVar!.data()) as Float32Array)]
  const error = await seen(async () => {
    layer.call(randn([6, layer.numFeatures], { device }))
    await settle()
  })
  await seen(() => destroyProcessGroup())
  const after = [...(layer.runningVar!.dataSync() as Float32Array)]
  return { error, before, after, batches: layer.numBatchesTracked!.item() }
}

/** After a failed group is destroyed the device computes on, and the ranks can meet again. */
export async function recovery({ timeout, store }: FaultArguments & { store: string }): Promise<unknown> {
  const { rank } = await join({ timeout })
  const error = await seen(async () => {
    allReduce(zeros([8 + rank], { device })).wait()
    await settle()
  })
  await seen(() => destroyProcessGroup())
  const local = full([3], 2, { device }).sum().item()
  await join({ timeout, initMethod: `file://${store}` })
  const data = full([4], rank + 1, { device })
  allReduce(data).wait()
  const together = data.sum().item()
  await destroyProcessGroup()
  return { error, local, together }
}

const sleep = (milliseconds: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, milliseconds))

/** What `join` says, and the backend if there is one. */
export async function meet({ timeout }: FaultArguments): Promise<unknown> {
  let backend: string | null = null
  const error = await seen(async () => {
    backend = (await join({ timeout })).backend
    await destroyProcessGroup()
  })
  return { error, backend }
}

/** Rank 0 waits for a rank that does not come, and its abort never returns; the other asks once that is so. */
export async function stuckAbort({ timeout }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout })
  const data = full([1 << 10], 1, { device })
  if (rank !== 0) {
    await sleep(timeout + SETTLED)
    return { told: await seen(settle) }
  }
  const work = allReduce(data)
  const behind = full([4], 1, { device })
  // The compute stream waits for it, behind the first.
  allReduce(behind).wait()
  const late = await seen(() => work)
  const blocked = await seen(() => behind.sum().item())
  const used = await seen(() => data.copy_(full([1 << 10], 2, { device })))
  const start = performance.now()
  await destroyProcessGroup()
  const destroyed = performance.now() - start
  return { late, blocked, used, destroyed, local: await seen(settle) }
}

/** NCCL fails on rank 0, for reasons of its own. */
export async function localFailure({ timeout }: FaultArguments): Promise<unknown> {
  await join({ timeout })
  return seen(async () => {
    for (let round = 0; round < 100; round += 1) {
      exchange('allReduce', undefined!)
      await settle()
      await sleep(20)
    }
  })
}

/** Rank 0 makes its first call, which NCCL does not come back from, alone; later, perhaps, the other makes it too. */
export async function firstCall({ timeout, culprit }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout })
  if (rank === culprit) {
    await sleep(timeout * 2.5)
    return { error: await seen(settle) }
  }
  const data = full([4], 1, { device })
  const error = await seen(async () => {
    allReduce(data).wait()
    await settle()
  })
  const sum = error.code === 'no error' ? data.sum().item() : null
  await destroyProcessGroup()
  return { error, sum }
}

/** Rank 1 leaves early; the others go on without it, until they need it. */
export async function leaveEarly({ timeout }: FaultArguments): Promise<unknown> {
  const { rank } = await join({ timeout })
  const data = full([1 << 10], rank + 1, { device })
  allReduce(data).wait()
  const start = performance.now()
  if (rank === 1) {
    const left = await seen(() => destroyProcessGroup())
    return { left, took: performance.now() - start, sum: data.mean().item() }
  }
  const alone: string[] = []
  while (performance.now() - start < timeout) {
    alone.push((await seen(settle)).code)
    data.copy_(data.add(1))
    await sleep(100)
  }
  const needed = await seen(() => allReduce(data))
  const after = await seen(settle)
  const left = await seen(() => destroyProcessGroup())
  return { alone: [...new Set(alone)], needed, after, left, took: 0, local: full([3], 2, { device }).sum().item() }
}

/** With SYNCBN_DEBUG=detail: what the call itself throws, before anything is waited for. */
export async function detail({ timeout, subgroup }: FaultArguments & { subgroup: boolean }): Promise<unknown> {
  const { rank } = await join({ timeout })
  const group = subgroup ? await newGroup([0, 1]) : null
  const data = zeros([8 + rank], { device })
  // Not waited for: without the comparison there would be nothing to see yet.
  return seen(() => void allReduce(data, { group }))
}
