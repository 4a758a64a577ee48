/** Our batch norm and PyTorch's on the same numbers, before either is timed. */
import { SyncBatchNorm, tensor, type Device } from 'syncbn'

import { nameOf, type CudaProblem } from './cuda-problems.ts'
import type { Samples } from './peers.ts'

/** Largest difference that is due to rounding, relative to the largest value. */
const TOLERANCE: Readonly<Record<string, number>> = { float32: 2e-5, float16: 2e-3, bfloat16: 1.6e-2 }

/** Numbers in [−0.5, 0.5), 16 bits each; batch_norm_torch_cuda.py makes the same. */
export function pattern(length: number, factor: number, offset: number): Float32Array {
  return Float32Array.from({ length }, (_, i) => ((i * factor + offset) % 65_536) / 65_536 - 0.5)
}

/** Weight and bias of the problem's channels; batch_norm_torch_cuda.py makes the same. */
function parameters(channels: number): { weight: Float32Array; bias: Float32Array } {
  return {
    weight: Float32Array.from({ length: channels }, (_, c) => 0.5 + (c % 7) / 8),
    bias: Float32Array.from({ length: channels }, (_, c) => (c % 5) / 4 - 0.5),
  }
}

function samplesOf(values: ArrayLike<number | bigint>, count: number): number[] {
  const samples = Math.min(count, values.length)
  return Array.from({ length: samples }, (_, i) => Number(values[Math.floor((i * values.length) / samples)]))
}

/** Some elements of our results. */
export function ourSamples(problem: CudaProblem, device: Device, count: number): Samples {
  const { shape, memoryFormat, dtype } = problem
  const channels = shape[1] as number
  const length = shape.reduce((a, b) => a * b, 1)
  const draw = (factor: number, offset: number, requiresGrad: boolean) =>
    tensor(pattern(length, factor, offset), { shape, dtype, memoryFormat, device, requiresGrad })
  const layer = new SyncBatchNorm(channels)
  const { weight, bias } = parameters(channels)
  layer.loadStateDict(new Map([...layer.stateDict(), ['weight', tensor(weight)], ['bias', tensor(bias)]]))
  layer.to(device)
  const input = draw(40_503, 0, true)
  const output = layer.call(input)
  output.backward(draw(30_011, 12_345, false))
  const read = (result: { to(dtype: 'float32'): { dataSync(): ArrayLike<number | bigint> } }): number[] =>
    samplesOf(result.to('float32').dataSync(), count)
  return {
    y: read(output),
    dx: read(input.grad!),
    gradWeight: read(layer.weight!.grad!),
    gradBias: read(layer.bias!.grad!),
  }
}

/**
 * Requires that two results agree but for rounding.
 *
 * @throws Error that names the problem, the result and the difference
 */
export function requireAgreement(problem: CudaProblem, ours: Samples, theirs: Samples): void {
  const count = problem.shape.reduce((a, b) => a * b, 1) / (problem.shape[1] as number)
  // Sums over `count` values are float32 whatever the input's type; what rounding does to them grows with their terms.
  const sizes = { y: 0, dx: 0, gradWeight: count, gradBias: count } as const
  for (const [name, terms] of Object.entries(sizes) as [keyof Samples, number][]) {
    const [a, b] = [ours[name], theirs[name]]
    const largest = Math.max(...b.map(Math.abs), 1e-3 * terms, 1e-3)
    const difference = Math.max(...a.map((value, i) => Math.abs(value - (b[i] as number))))
    const allowed = (TOLERANCE[terms > 0 ? 'float32' : problem.dtype] as number) * largest
    if (a.length === b.length && difference <= allowed) continue
    throw new Error(`${nameOf(problem)}: ${name} differs from PyTorch's by ${difference}, more than ${allowed}`)
  }
}
