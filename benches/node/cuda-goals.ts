/**
 * What the GPU kernels are meant to reach, and the measurement that comes least close to each.
 *
 * A kernel's bandwidth counts the bytes it cannot do without; its measure is the card's own copy in the same run.
 */
import { nameOf } from './cuda-problems.ts'
import type { CudaResult, CudaResults, CudaTimes, Goal } from './cuda-results.ts'
import type { TorchWay } from './peers.ts'

/** Passes over the input that each kernel cannot do without. */
const PASSES = { stats: 1, normalize: 2, backwardReduce: 2, backwardApply: 3 } as const
/** Tensors from this size on do not fit into a cache. */
const LARGE_BYTES = 50e6
/** Where launches stop to matter beside the passes. */
const SMALL_BYTES = 25e6

/** Every goal, measured. */
export function goals({ problems, copyGigabytesPerSecond }: CudaResults): Goal[] {
  const large = problems.filter(({ bytes }) => bytes >= LARGE_BYTES)
  const kernels = (Object.keys(PASSES) as (keyof typeof PASSES)[]).map((kernel) =>
    goal(
      `${kernel}, share of the copy's bandwidth, tensors from 50 MB`,
      0.85,
      large,
      ({ bytes, ours }) => bandwidth(PASSES[kernel] * bytes, ours[kernel]) / copyGigabytesPerSecond,
    ),
  )
  const small = problems.filter(({ bytes }) => bytes < SMALL_BYTES)
  const rest = problems.filter(({ bytes }) => bytes >= SMALL_BYTES)
  return [
    ...kernels,
    goal("PyTorch's sequence ÷ SyncBatchNorm, forward + backward, below 25 MB", 2, small, againstSequence),
    goal("PyTorch's sequence ÷ SyncBatchNorm, forward + backward, from 25 MB", 1.2, rest, againstSequence),
    goal('cuDNN ÷ batch norm of one rank, forward + backward', 1, problems, againstCudnn),
  ]
}

function goal(
  name: string,
  wanted: number,
  problems: readonly CudaResult[],
  measure: (problem: CudaResult) => number | null,
): Goal {
  let worst: Goal['worst'] = null
  for (const problem of problems) {
    const value = measure(problem)
    if (value === null) continue
    // A value that is no number is the worst there is.
    if (worst === null || Number.isNaN(value) || value < worst.value) worst = { value, problem: nameOf(problem) }
  }
  return { name, wanted, worst, reached: worst && worst.value >= wanted }
}

function bandwidth(bytes: number, milliseconds: number): number {
  return bytes / milliseconds / 1e6
}

const both = ({ forward, backward }: CudaTimes): number => forward + backward

function againstSequence({ ours, torch }: CudaResult): number | null {
  if (torch === undefined) return null
  return (torch.syncForward + torch.syncBackward) / (ours.syncForward + ours.syncBackward)
}

function againstCudnn({ ours, torch }: CudaResult): number | null {
  const way: TorchWay | undefined = torch?.cudnn
  if (way === undefined || 'unavailable' in way) return null
  return (way.forwardMs + way.backwardMs) / both(ours)
}

/** One line for each goal. */
export function goalsReport(all: readonly Goal[]): string[] {
  return all.map(({ name, wanted, worst, reached }) => {
    if (worst === null) return `not measured  ${name}: wanted ${wanted}`
    const verdict = reached ? 'reached      ' : 'NOT reached  '
    return `${verdict} ${name}: wanted ${wanted}, least ${worst.value.toFixed(2)} at ${worst.problem}`
  })
}
