/**
 * One rank of the benchmark: a process that measures what the main program asks for, and is idle otherwise.
 *
 * Every rank of a job gets the same requests in the same order, and answers with milliseconds per iteration.
 */
import {
  barrier,
  BatchNorm1d,
  BatchNorm2d,
  destroyProcessGroup,
  gatherStats,
  initProcessGroup,
  SyncBatchNorm,
  syncBatchNorm,
  syncBatchNormBackward,
  tensor,
  type ArrayTensor,
  type MemoryFormat,
} from 'syncbn'

import { nativeGroup } from '../../dist/distributed/process-group.js'
import { native } from '../../dist/native.js'

/** How the layer is called. */
export type Path = 'batchNorm' | 'module' | 'functional'

export type Request =
  | { kind: 'layer'; path: Path; shape: readonly number[]; memoryFormat: MemoryFormat; iterations: number }
  | { kind: 'kernels'; shape: readonly number[]; memoryFormat: MemoryFormat; iterations: number }
  | { kind: 'gatherStats'; channels: number; iterations: number }
  | { kind: 'allGather'; bytes: number; iterations: number }
  | { kind: 'copy'; bytes: number; iterations: number }
  | { kind: 'end' }

/** Milliseconds of each iteration; `second` is the backward, where there is one. */
export interface Answer {
  first: number[]
  second: number[]
}

const WARMUP = 3
const EXCHANGE_WARMUP = 200
const group = await initProcessGroup()

/** Random numbers, a block of them again and again: their values do not matter. */
function randomArray(length: number): Float32Array {
  const array = new Float32Array(length)
  const block = Float32Array.from({ length: Math.min(length, 65_536) }, () => Math.random() - 0.5)
  for (let at = 0; at < length; at += block.length) array.set(block.subarray(0, length - at), at)
  return array
}

/** This rank's part of a shape. */
function localShape(shape: readonly number[]): number[] {
  return [(shape[0] as number) / group.size, ...shape.slice(1)]
}

function makeLayer(path: Path, shape: readonly number[]): BatchNorm1d | BatchNorm2d | SyncBatchNorm {
  const channels = shape[1] as number
  if (path === 'module') return new SyncBatchNorm(channels)
  return shape.length === 2 ? new BatchNorm1d(channels) : new BatchNorm2d(channels)
}

/** One step returns the moments at which it began, was in between, and ended. */
type Step = () => [number, number, number]

function moduleStep(path: Path, shape: readonly number[], memoryFormat: MemoryFormat): Step {
  const local = localShape(shape)
  const length = local.reduce((a, b) => a * b, 1)
  const input = tensor(randomArray(length), { shape: local, memoryFormat, requiresGrad: true })
  const gradOutput = tensor(randomArray(length), { shape: local, memoryFormat })
  const layer = makeLayer(path, shape)
  return () => {
    const start = performance.now()
    const output = layer.call(input)
    const middle = performance.now()
    output.backward(gradOutput)
    const end = performance.now()
    output.dispose()
    input.grad = null
    layer.zeroGrad()
    return [start, middle, end]
  }
}

function functionalStep(shape: readonly number[], memoryFormat: MemoryFormat): Step {
  const local = localShape(shape)
  const channels = shape[1] as number
  const length = local.reduce((a, b) => a * b, 1)
  const input: ArrayTensor<Float32Array> = { data: randomArray(length), shape: local, memoryFormat }
  const gradOutput: ArrayTensor<Float32Array> = { data: randomArray(length), shape: local, memoryFormat }
  const ones = (): Float32Array => new Float32Array(channels).fill(1)
  const args = { weight: ones(), bias: ones(), runningMean: ones(), runningVar: ones(), training: true }
  return () => {
    const start = performance.now()
    const { saved } = syncBatchNorm(input, args)
    const middle = performance.now()
    syncBatchNormBackward(gradOutput, saved)
    const end = performance.now()
    saved.dispose()
    return [start, middle, end]
  }
}

function measure(step: Step, iterations: number, warmup: number): Answer {
  const answer: Answer = { first: [], second: [] }
  for (let i = 0; i < warmup + iterations; i += 1) {
    barrier().wait()
    const [start, middle, end] = step()
    if (i < warmup) continue
    answer.first.push(middle - start)
    answer.second.push(end - middle)
  }
  return answer
}

/** Exchanges back to back: ranks that wait for nothing else stay in step by themselves. */
function measureGatherStats(channels: number, iterations: number): Answer {
  const local = { count: 1, mean: new Float64Array(channels), m2: new Float64Array(channels) }
  const times: number[] = []
  for (let i = 0; i < EXCHANGE_WARMUP + iterations; i += 1) {
    const start = performance.now()
    gatherStats(local)
    times.push(performance.now() - start)
  }
  return { first: times.slice(EXCHANGE_WARMUP), second: [] }
}

/** The same exchange without the JavaScript around it. */
function measureAllGather(bytes: number, iterations: number): Answer {
  native.timeAllGather(nativeGroup(group), bytes, EXCHANGE_WARMUP)
  return { first: native.timeAllGather(nativeGroup(group), bytes, iterations), second: [] }
}

/** Both phases of batch norm on reused memory, without the JavaScript around them. */
function measureKernels(shape: readonly number[], memoryFormat: MemoryFormat, iterations: number): Answer {
  const { forward, backward } = native.timeBatchNorm([...shape], memoryFormat, iterations)
  return { first: forward, second: backward }
}

/** Memory to memory, as the processor's own copy does it. */
function copyStep(bytes: number): Step {
  const from = new Uint8Array(bytes).fill(1)
  const to = new Uint8Array(bytes).fill(2)
  return () => {
    const start = performance.now()
    to.set(from)
    const end = performance.now()
    return [start, end, end]
  }
}

function answer(request: Exclude<Request, { kind: 'end' }>): Answer {
  switch (request.kind) {
    case 'layer': {
      const { path, shape, memoryFormat, iterations } = request
      const step = path === 'functional' ? functionalStep(shape, memoryFormat) : moduleStep(path, shape, memoryFormat)
      return measure(step, iterations, WARMUP)
    }
    case 'kernels':
      return measureKernels(request.shape, request.memoryFormat, request.iterations)
    case 'gatherStats':
      return measureGatherStats(request.channels, request.iterations)
    case 'allGather':
      return measureAllGather(request.bytes, request.iterations)
    case 'copy':
      return measure(copyStep(request.bytes), request.iterations, WARMUP)
  }
}

process.on('message', (request: Request) => {
  if (request.kind !== 'end') return void process.send?.(answer(request))
  void destroyProcessGroup().then(() => process.disconnect())
})
process.send?.('ready')
