/** Training on several ranks: what DistributedDataParallel and SyncBatchNorm have to make of it. */
import {
  BatchNorm1d,
  BatchNorm2d,
  Conv2d,
  convertSyncBatchNorm,
  CrossEntropyLoss,
  destroyProcessGroup,
  DistributedDataParallel,
  Flatten,
  Linear,
  manualSeed,
  MaxPool2d,
  Module,
  noGrad,
  ReLU,
  Sequential,
  SGD,
  tensor,
  type Tensor,
} from 'syncbn'

import { device, join } from '../place.ts'
import { seen } from '../seen-error.ts'

const GLOBAL_BATCH = 8
const IMAGE = [1, 6, 5] as const
const PIXELS = IMAGE[0] * IMAGE[1] * IMAGE[2]
const CLASSES = 3
const LEARNING_RATE = 0.05

export interface TrainArguments {
  norm: 'sync' | 'local'
  steps: number
}

/** State-dict entries as plain arrays. */
export type State = Record<string, number[]>

/** A number in [−1, 1) for every index, the same in every process. */
function noise(index: number): number {
  const x = Math.sin(index * 12.9898 + 78.233) * 43758.5453
  return 2 * (x - Math.floor(x)) - 1
}

/** This rank's part of the batch of a step: images with brightness of their own, so that local statistics differ. */
function batch(step: number, rank: number, size: number): { images: Tensor; labels: Tensor } {
  const count = GLOBAL_BATCH / size
  const rows = Array.from({ length: count }, (_, i) => step * GLOBAL_BATCH + rank * count + i)
  const pixels = rows.flatMap((row) =>
    Array.from({ length: PIXELS }, (_, i) => noise(row * PIXELS + i) + 2 * noise(row)),
  )
  return {
    images: tensor(Float32Array.from(pixels), { shape: [count, ...IMAGE], device }),
    labels: tensor(
      rows.map((row) => row % CLASSES),
      { dtype: 'int64', device },
    ),
  }
}

function convNet(): Sequential {
  manualSeed(3)
  const net = new Sequential(
    new Conv2d(1, 5, 3, { padding: 1 }),
    new BatchNorm2d(5),
    new ReLU(),
    new MaxPool2d(2),
    new Conv2d(5, 7, 3, { padding: 1, bias: false }),
    new BatchNorm2d(7, { momentum: null }),
    new ReLU(),
    new Flatten(),
    new Linear(7 * 3 * 2, 9),
    new BatchNorm1d(9),
    new ReLU(),
    new Linear(9, CLASSES),
  )
  return net.to(device)
}

/** `steps` SGD steps of a conv net; the state afterwards. */
export async function convNetSteps({ norm, steps }: TrainArguments): Promise<State> {
  const { rank, size } = await join()
  const net = convNet()
  const model = new DistributedDataParallel(norm === 'sync' ? convertSyncBatchNorm(net) : net, { bucketCapMb: 0.001 })
  const optimizer = new SGD(model.parameters(), { lr: LEARNING_RATE, momentum: 0.9 })
  const criterion = new CrossEntropyLoss()
  for (let step = 0; step < steps; step += 1) {
    const { images, labels } = batch(step, rank, size)
    optimizer.zeroGrad()
    criterion.call(model.call(images), labels).backward()
    optimizer.step()
  }
  const state = stateOf(model)
  await destroyProcessGroup()
  return state
}

function stateOf(module: Module): State {
  return Object.fromEntries([...module.stateDict()].map(([name, value]) => [name, valuesOf(value)]))
}

function valuesOf(value: Tensor | null): number[] {
  return value === null ? [] : Array.from(value.dataSync() as Float32Array, Number)
}

/** y = x·w for a scalar w that starts at a value of its own on every rank. */
class Scale extends Module {
  readonly inner: Linear

  constructor(start: number) {
    super()
    this.inner = new Linear(1, 1, { bias: false, device })
    noGrad(() => this.inner.weight.fill_(start))
  }

  override forward(input: Tensor): Tensor {
    return this.inner.call(input)
  }

  get gradient(): number[] {
    return valuesOf(this.inner.weight.grad)
  }
}

const column = (...values: number[]): Tensor => tensor(values, { shape: [values.length, 1], dtype: 'float32', device })

/** The start from rank 0, averages, and gradients that accumulate inside noSync. */
export async function averaging(): Promise<unknown> {
  const { rank } = await join()
  const own = new Scale(rank + 2)
  const model = new DistributedDataParallel(own)
  const start = valuesOf(own.inner.weight)
  const backward = (value: number): void => model.call(column(value)).sum().backward()
  backward(rank + 1)
  const averaged = own.gradient
  model.zeroGrad()
  model.noSync(() => backward(rank + 1))
  const local = own.gradient
  backward(10 * (rank + 1))
  const accumulated = own.gradient
  model.zeroGrad()
  const both = model.call(column(rank + 1)).add(model.call(column(2 * rank)))
  both.sum().backward()
  const twoForwards = own.gradient
  model.zeroGrad()
  noGrad(() => model.call(column(5)))
  backward(rank)
  const afterNoGrad = own.gradient
  const keys = [...model.stateDict().keys()]
  await destroyProcessGroup()
  return { start, averaged, local, accumulated, twoForwards, afterNoGrad, keys }
}

/** Rank 0 alone evaluates: nothing may be exchanged. */
export async function evaluateAlone(): Promise<unknown> {
  const { rank } = await join({ timeout: 10_000 })
  const model = new DistributedDataParallel(convertSyncBatchNorm(convNet()))
  if (rank === 0) {
    model.eval()
    noGrad(() => model.call(batch(0, 0, 2).images))
    model.call(batch(0, 0, 2).images)
    model.train()
  }
  const { images } = batch(0, rank, 2)
  model.call(images).sum().backward()
  await destroyProcessGroup()
  return true
}

/** Two branches; which one runs is the caller's choice. */
class Branches extends Module {
  readonly first = new Linear(2, 1, { device })
  readonly second = new Linear(2, 1, { device })
  readonly third = new Linear(2, 1, { device })
  use: 'first' | 'second' = 'first'

  override forward(input: Tensor): Tensor {
    return this[this.use].call(input)
  }
}

/** Rank 0 uses the first branch, the others the second; nobody the third. */
export async function unusedParameters({ find }: { find: boolean }): Promise<unknown> {
  const { rank } = await join({ timeout: 10_000 })
  const branches = new Branches()
  branches.use = rank === 0 ? 'first' : 'second'
  const model = new DistributedDataParallel(branches, { findUnusedParameters: find })
  const input = tensor([1, rank + 1], { shape: [1, 2], dtype: 'float32', device })
  const gradients = (): number[][] =>
    ['first', 'second', 'third'].map((name) => valuesOf(branches[name as 'first'].weight.grad))
  const error = await seen(() => model.call(input).sum().backward())
  const once = gradients()
  if (!find) return { error, once }
  model.call(input).sum().backward()
  const twice = gradients()
  await destroyProcessGroup()
  return { error, once, twice }
}

/** An error in the middle of a backward must not spoil the next one. */
export async function failedBackward(): Promise<unknown> {
  await join({ timeout: 10_000 })
  const own = new Scale(1)
  const model = new DistributedDataParallel(own)
  const output = model.call(column(1, 2))
  const error = await seen(() => output.backward())
  model.call(column(3)).sum().backward()
  await destroyProcessGroup()
  return { error, gradient: own.gradient }
}

/** Buffers of an ordinary batch norm are rank 0's; those of a SyncBatchNorm are everybody's anyway. */
export async function buffers({
  norm,
  broadcastBuffers,
}: {
  norm: 'sync' | 'local'
  broadcastBuffers: boolean
}): Promise<State> {
  const { rank, size } = await join()
  const layer = new BatchNorm2d(1, { momentum: 1, device })
  const model = new DistributedDataParallel(norm === 'sync' ? convertSyncBatchNorm(layer) : layer, { broadcastBuffers })
  for (let step = 0; step < 2; step += 1) model.call(batch(step, rank, size).images)
  // The next forward starts from rank 0's buffers, and changes nothing of them.
  model.module.eval()
  model.call(batch(0, rank, size).images)
  const state = stateOf(model)
  await destroyProcessGroup()
  return state
}

/** What the constructor refuses. */
export async function refusals(): Promise<unknown> {
  const outside = await seen(() => new DistributedDataParallel(new Linear(1, 1)))
  await join()
  const frozen = new Linear(1, 1).requiresGrad_(false)
  const results = {
    outside,
    frozen: await seen(() => new DistributedDataParallel(frozen)),
    devices: await seen(() => new DistributedDataParallel(new Linear(1, 1), { deviceIds: ['cpu', 'cpu'] as never })),
    cuda: await seen(() => new DistributedDataParallel(new Linear(1, 1), { deviceIds: [0] })),
    bucket: await seen(() => new DistributedDataParallel(new Linear(1, 1), { bucketCapMb: 0 })),
  }
  await destroyProcessGroup()
  return results
}
