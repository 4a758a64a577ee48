/** What every rank of a healthy job does with groups and collectives. */
import {
  allGather,
  allReduce,
  barrier,
  broadcast,
  destroyProcessGroup,
  getLocalRank,
  getRank,
  getWorldSize,
  isInitialized,
  monitoredBarrier,
  newGroup,
  newSubgroups,
  syncBatchNorm,
  tensor,
  zeros,
  type ReduceOp,
} from 'syncbn'

import { device, join } from '../place.ts'
import { seen } from '../seen-error.ts'

const OPS: readonly ReduceOp[] = ['sum', 'avg', 'prod', 'min', 'max']
const LENGTH = 1031

/** Whole numbers of a rank: sums of them are exact in any order. */
function numbers(rank: number, length = LENGTH): number[] {
  return Array.from({ length }, (_, i) => ((i * 7 + rank * 3) % 11) - 5)
}

export async function identity(): Promise<unknown> {
  const before = isInitialized()
  const group = await join({ timeout: 20_000 })
  const facts = {
    before,
    after: isInitialized(),
    ranks: group.ranks,
    timeout: group.timeout,
    backend: group.backend,
    rank: [group.rank, getRank(), getRank(group)],
    size: [group.size, getWorldSize(), getWorldSize(group)],
    localRank: getLocalRank(),
    again: await seen(() => join()),
  }
  await destroyProcessGroup()
  return { ...facts, end: isInitialized(), rankAfter: await seen(() => getRank()) }
}

export async function reductions(): Promise<unknown> {
  const { rank } = await join()
  const results: Record<string, unknown> = {}
  for (const op of OPS) {
    const float32 = Float32Array.from(numbers(rank))
    const float64 = Float64Array.from(numbers(rank))
    const onTensor = tensor(numbers(rank), { dtype: 'float64', device })
    const works = [allReduce(float32, { op }), allReduce(float64, { op }), allReduce(onTensor, { op })]
    works[2]?.wait()
    works[1]?.wait()
    await works[0]
    results[op] = [float32, float64, await onTensor.data()]
    if (op === 'avg') continue
    const [int32, int64] = [Int32Array.from(numbers(rank)), BigInt64Array.from(numbers(rank).map(BigInt))]
    await allReduce(int32, { op })
    allReduce(int64, { op }).wait()
    results[`${op} of integers`] = [int32, int64]
  }
  await destroyProcessGroup()
  return results
}

export async function copies(): Promise<unknown> {
  const { rank, size } = await join()
  const outputs = Array.from({ length: size }, () => new Float32Array(LENGTH))
  const gathering = allGather(outputs, Float32Array.from(numbers(rank)))
  await gathering
  const onTensors = Array.from({ length: size }, () => zeros([3], { dtype: 'int64', device }))
  allGather(onTensors, tensor([rank, 1, 2], { dtype: 'int64', device })).wait()
  const src = size - 1
  const sent = Float64Array.from(numbers(rank))
  await broadcast(sent, { src })
  const empty = new Float32Array(0)
  allReduce(empty).wait()
  await barrier()
  monitoredBarrier({ timeout: 10_000 }).wait()
  await destroyProcessGroup()
  return { outputs, tensors: onTensors.map((t) => t.dataSync()), sent, completed: gathering.completed }
}

/** A typed array changes when the work is waited for, not before, and only once. */
export async function delivery(): Promise<unknown> {
  await join()
  const data = Float32Array.of(1, 2)
  const work = allReduce(data)
  while (!work.completed) await new Promise((resolve) => setTimeout(resolve, 1))
  const untouched = [...data]
  work.wait()
  const delivered = [...data]
  data.fill(9)
  work.wait()
  await work
  await destroyProcessGroup()
  return { untouched, delivered, afterwards: [...data] }
}

export async function subgroups(): Promise<unknown> {
  const { rank, size } = await join()
  const even = await newGroup(Array.from({ length: Math.ceil(size / 2) }, (_, i) => 2 * i))
  const pair = await newSubgroups(2)
  const data = Float32Array.of(rank + 1)
  await allReduce(data, { group: pair })
  const strided = Float32Array.of(rank + 1)
  const input = { data: Float32Array.of(rank, rank + 1), shape: [2, 1] }
  const use = (): unknown => syncBatchNorm(input, { training: true, group: even })
  const outside =
    even.rank === -1
      ? [
          await seen(use),
          await seen(() => allReduce(strided, { group: even })),
          await seen(() => barrier({ group: even })),
        ]
      : []
  if (even.rank !== -1) {
    use()
    await allReduce(strided, { group: even })
    await barrier({ group: even })
  }
  const wrong = await seen(() => newSubgroups(3))
  await destroyProcessGroup(pair)
  await barrier()
  await destroyProcessGroup()
  return { even: { ...even }, pair: { ...pair }, data: data[0], strided: strided[0], outside, wrong }
}
