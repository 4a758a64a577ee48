/** What ranks with GPUs do with groups beyond what ranks of CPUs do. */
import {
  allGather,
  allReduce,
  barrier,
  broadcast,
  cuda,
  destroyProcessGroup,
  DistributedDataParallel,
  full,
  Linear,
  newGroup,
  tensor,
  zeros,
  type DType,
} from 'syncbn'

import { device, join } from '../../distributed/place.ts'
import { seen } from '../../distributed/seen-error.ts'

/** The backend that a group got, and whether its collectives work. */
export async function backend(): Promise<unknown> {
  const group = await join({ timeout: 20_000 })
  const data = tensor([group.rank + 1], { device })
  await allReduce(data)
  const sum = data.item()
  await destroyProcessGroup()
  return { backend: group.backend, sum }
}

/** Tensors of every dtype on the GPU, and tensors and arrays of the CPU, in one group. */
export async function mixedPlaces(): Promise<unknown> {
  const { rank, size } = await join()
  const sums: Record<string, number[]> = {}
  for (const dtype of ['float32', 'float64', 'float16', 'bfloat16', 'int32', 'int64'] as DType[]) {
    const there = full([33], rank + 1, { dtype, device })
    const work = allReduce(there)
    await work
    sums[dtype] = [there.to('float64').mean().item(), Number(work.completed)]
  }
  const here = full([5], rank + 1)
  allReduce(here).wait()
  const array = Float64Array.of(rank + 1)
  await allReduce(array)
  const outputs = Array.from({ length: size }, () => zeros([2], { device }))
  allGather(outputs, full([2], rank, { device })).wait()
  const sent = full([3], rank, { dtype: 'int64', device })
  await broadcast(sent, { src: size - 1 })
  await barrier()
  const gathered = outputs.map((output) => output.sum().item())
  const result = {
    sums,
    here: here.dataSync()[0],
    array: array[0],
    gathered,
    sent: sent.to('float64').sum().item(),
  }
  await destroyProcessGroup()
  return result
}

/** A collective that is only waited for is ordered before what is enqueued next. */
export async function order(): Promise<unknown> {
  const { rank } = await join()
  const data = full([1 << 12], rank + 1, { device })
  const totals: number[] = []
  for (let round = 0; round < 5; round += 1) {
    const work = allReduce(data)
    work.wait()
    data.copy_(data.add(1))
    totals.push(data.mean().item())
  }
  await destroyProcessGroup()
  return totals
}

/** Groups of some ranks on GPUs, used at the same time by their members. */
export async function subgroups(): Promise<unknown> {
  const { rank } = await join()
  const low = await newGroup([0, 1])
  const high = await newGroup([2, 3])
  const own = rank < 2 ? low : high
  const data = full([7], rank, { device })
  await allReduce(data, { group: own })
  const outside = await seen(() => allReduce(data, { group: rank < 2 ? high : low }))
  await allReduce(data)
  const total = data.mean().item()
  await destroyProcessGroup(own)
  await barrier()
  await destroyProcessGroup()
  return { backend: own.backend, total, outside }
}

/** Tensors and modules of other devices than the group's. */
export async function wrongDevices(): Promise<unknown> {
  const { rank, size, backend } = await join({ timeout: 20_000 })
  const other = `cuda:${(Number(device.slice('cuda:'.length)) + 1) % cuda.deviceCount()}` as const
  const mixed = new Linear(2, 2, { device })
  mixed.bias!.to(other)
  const split = new Linear(2, 2, { device })
  split.registerParameter('extra', zeros([1], { device: other }))
  const result = {
    backend,
    reduced: await seen(() => allReduce(zeros([1], { device: other }))),
    gathered: await seen(() =>
      allGather(
        Array.from({ length: size }, () => zeros([1])),
        zeros([1], { device }),
      ),
    ),
    ids: await seen(() => new DistributedDataParallel(new Linear(1, 1, { device }), { deviceIds: [other] })),
    split: await seen(() => new DistributedDataParallel(split)),
  }
  const model = new DistributedDataParallel(new Linear(1, 1, { device }), { deviceIds: [device], outputDevice: 'cpu' })
  const output = model.call(tensor([[rank + 1]], { dtype: 'float32' }))
  output.sum().backward()
  const { weight } = model.module
  const moved = { output: output.device, gradient: weight.grad!.device, value: weight.grad!.item() }
  await destroyProcessGroup()
  return { ...result, moved }
}

/** Groups made while collectives of the whole are under way, none of which waits for the other in the program. */
export async function groupsAmongCollectives(): Promise<unknown> {
  const { rank } = await join()
  const sums: number[] = []
  for (let round = 0; round < 4; round += 1) {
    const data = full([1 << 12], rank + 1, { device })
    const before = allReduce(data)
    const making = [newGroup([0, 1]), newGroup([1])]
    // Ranks come at different times.
    if (round % 2 === rank) await new Promise((resolve) => setTimeout(resolve, 30))
    const other = full([5], rank, { device })
    const after = allReduce(other)
    const [both, one] = await Promise.all(making)
    const own = full([3], rank, { device })
    await allReduce(own, { group: both ?? null })
    if (rank === 1) await allReduce(own, { group: one ?? null })
    before.wait()
    after.wait()
    sums.push(data.mean().item(), other.mean().item(), own.mean().item())
  }
  await destroyProcessGroup()
  return sums
}
