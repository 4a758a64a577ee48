/** Training on ranks with GPUs as a recorded step. */
import {
  AdamW,
  allReduce,
  barrier,
  BatchNorm1d,
  BatchNorm2d,
  batchNormStats,
  broadcast,
  Conv2d,
  convertSyncBatchNorm,
  cuda,
  destroyProcessGroup,
  DistributedDataParallel,
  Flatten,
  gatherStats,
  Linear,
  manualSeed,
  monitoredBarrier,
  randn,
  ReLU,
  Sequential,
  SGD,
  syncBatchNorm,
  tensor,
  zeros,
  type Device,
  type Optimizer,
  type Tensor,
} from 'syncbn'

import { device, join } from '../../distributed/place.ts'
import type { SeenError } from '../../distributed/ranks.ts'
import type { State } from '../../distributed/scenarios/training.ts'
import { seen } from '../../distributed/seen-error.ts'

export interface CaptureArguments {
  optimizer: 'SGD' | 'AdamW'
  /** Whether the steps after the warm-up are replays. */
  captured: boolean
  warmup: number
  steps: number
}

function makeModel(): Sequential {
  manualSeed(21)
  const net = new Sequential(
    new Conv2d(2, 4, 3, { padding: 1 }),
    new BatchNorm2d(4),
    new ReLU(),
    new Conv2d(4, 3, 3),
    new BatchNorm2d(3, { momentum: null }),
    new Flatten(),
    new Linear(12, 2),
  )
  return convertSyncBatchNorm(net).to(device) as Sequential
}

function makeOptimizer(name: string, parameters: Iterable<Tensor>): Optimizer {
  if (name === 'AdamW') return new AdamW(parameters, { lr: 0.01 })
  return new SGD(parameters, { lr: 0.05, momentum: 0.9 })
}

/** Steps of DistributedDataParallel with SyncBatchNorm where the last rank has no samples; the state afterwards. */
export async function capturedSteps({ optimizer: name, captured, warmup, steps }: CaptureArguments): Promise<unknown> {
  const { rank, size } = await join({ timeout: 30_000 })
  cuda.setDevice(Number(device.slice('cuda:'.length)))
  const model = new DistributedDataParallel(makeModel(), { bucketCapMb: 0.0001, broadcastBuffers: true })
  const optimizer = makeOptimizer(name, model.parameters())
  const samples = rank === size - 1 && size > 1 ? 0 : 3
  const images = zeros([samples, 2, 4, 4], { device })
  const load = (step: number): void => {
    manualSeed(50 + step)
    images.copy_(randn([samples, 2, 4, 4]).add(step))
  }
  const step = (): Tensor => {
    optimizer.zeroGrad()
    const output = model.call(images)
    const loss = output.mul(output).sum()
    loss.backward()
    optimizer.step()
    return loss
  }
  load(0)
  const losses: number[] = []
  if (captured) {
    const recorded = cuda.capture(step, { warmup })
    for (let i = 0; i < steps; i += 1) {
      load(i)
      recorded.replay()
      losses.push(recorded.outputs.item())
    }
    recorded.dispose()
  } else {
    for (let i = 0; i < warmup; i += 1) step()
    for (let i = 0; i < steps; i += 1) {
      load(i)
      losses.push(step().item())
    }
  }
  const entries = [...model.stateDict()].map(([key, value]) => [
    key,
    Array.from(value.dataSync() as Float32Array, Number),
  ])
  const state = Object.fromEntries(entries) as State
  await destroyProcessGroup()
  return { losses, state }
}

/** What a capture refuses of groups. */
export async function refusals(): Promise<unknown> {
  const { backend } = await join({ timeout: 20_000 })
  cuda.setDevice(Number(device.slice('cuda:'.length)))
  const model = new DistributedDataParallel(makeModel(), { findUnusedParameters: true })
  const images = randn([3, 2, 4, 4], { device })
  const unused = await seen(() => cuda.capture(() => model.call(images).sum().backward()))
  const plain = new DistributedDataParallel(makeModel())
  const exchanged = await seen(() => cuda.capture(() => plain.call(images).sum().backward(), { warmup: 1 }).dispose())
  plain.zeroGrad()
  plain.call(images).sum().backward()
  const gradients = [...plain.parameters()].filter((p) => p.grad !== null).length
  const x = { data: Float32Array.of(1, 2), shape: [2, 1] }
  const host: Record<string, SeenError> = {}
  for (const [name, exchange] of Object.entries({
    barrier: () => barrier().wait(),
    monitoredBarrier: () => monitoredBarrier().wait(),
    allReduce: () => allReduce(Float32Array.of(1)).wait(),
    broadcast: () => broadcast(zeros([1]), { src: 0 }).wait(),
    gatherStats: () => gatherStats(batchNormStats(x)),
    syncBatchNorm: () => syncBatchNorm(x, {}),
  })) {
    host[name] = await seen(() => cuda.capture(exchange, { warmup: 0 }))
  }
  await barrier()
  await destroyProcessGroup()
  return { backend, unused, exchanged, gradients, host }
}

/** A group that is left while a recording with its collectives lives on. */
export async function leaving(): Promise<unknown> {
  await join({ timeout: 20_000 })
  cuda.setDevice(Number(device.slice('cuda:'.length)))
  const model = new DistributedDataParallel(makeModel())
  const images = randn([3, 2, 4, 4], { device })
  const captured = cuda.capture(() => {
    model.zeroGrad()
    const loss = model.call(images).sum()
    loss.backward()
    return loss
  })
  captured.replay()
  const before = captured.outputs.item()
  const start = performance.now()
  await destroyProcessGroup()
  const seconds = (performance.now() - start) / 1000
  const replayed = await seen(() => captured.replay())
  return { seconds, replayed, same: captured.outputs.item() === before }
}

/** A layer in bfloat16 on ranks whose gradients a sum in bfloat16 would lose, and what became of it. */
export async function halfGradients(): Promise<unknown> {
  const { rank } = await join({ timeout: 20_000 })
  const layer = convertSyncBatchNorm(new BatchNorm1d(1)).to({ device, dtype: 'bfloat16' }) as BatchNorm1d
  const model = new DistributedDataParallel(layer)
  const x = tensor([[rank]], { device, dtype: 'bfloat16' })
  model.call(x).backward(tensor([[rank === 0 ? 256 : 1]], { device, dtype: 'bfloat16' }))
  const result = {
    dtypes: [layer.weight, layer.bias!.grad, layer.runningMean, layer.runningVar].map((t) => t!.dtype),
    bias: layer.bias!.grad!.item(),
    runningMean: layer.runningMean!.item(),
  }
  await destroyProcessGroup()
  return result
}

/** A rank whose module is on another GPU than its group. */
export async function misplacedRank(): Promise<unknown> {
  const { rank } = await join({ timeout: 20_000 })
  const other: Device = `cuda:${cuda.deviceCount() - 1}`
  const start = Date.now()
  const parameters = await seen(
    () => new DistributedDataParallel(new Linear(1, 1, { device: rank === 1 ? other : device })),
  )
  const withBuffer = new Linear(1, 1, { device })
  withBuffer.registerBuffer('somewhere', zeros([1], { device: rank === 1 ? other : device }))
  const buffers = await seen(() => new DistributedDataParallel(withBuffer))
  const ids = await seen(
    () => new DistributedDataParallel(new Linear(1, 1, { device }), { deviceIds: [rank === 1 ? other : device] }),
  )
  const onCpu = await seen(() => new DistributedDataParallel(new Linear(1, 1, { device: rank === 1 ? 'cpu' : device })))
  const seconds = (Date.now() - start) / 1000
  await destroyProcessGroup()
  return { parameters, buffers, ids, onCpu, seconds }
}
