/**
 * Synchronized batch norm in pieces, for adapters that keep activations elsewhere: only per-channel numbers cross.
 *
 * Forward: `batchNormStats` of the own batch, `gatherStats` over the ranks (or `mergeStats` by hand), `batchNormApply`.
 * Backward: `batchNormBackwardReduce`, an all-reduce of its sums by the caller, `batchNormBackwardApply`.
 */
import { channelArray, newLike, toBindingArray, withChannelOperands } from './batch-norm-operands.ts'
import type { ProcessGroup } from './distributed/process-group.ts'
import { argumentError } from './errors.ts'
import { native } from './native.ts'
import { syncGroup } from './sync-group.ts'
import { nativeOf, Tensor, wrap } from './tensor.ts'
import type { ArrayTensor, BatchNormArguments, ChannelStats, TypedArray } from './types.ts'

type Kind = Tensor | ArrayTensor
type Arguments = BatchNormArguments<Kind | TypedArray>

/** Sums of a backward pass, C values each. */
export interface BackwardSums {
  /** Σ dy */
  sumDy: Float64Array
  /** Σ dy·(x − mean) */
  sumDyXmu: Float64Array
}

/** Per-channel count, mean and sum of squared differences of (N, C, …), on any device. Waits for a GPU. */
export function batchNormStats(input: Tensor | ArrayTensor): ChannelStats {
  if (input instanceof Tensor) return native.batchNormStats(nativeOf(input))
  return native.batchNormStatsArray(toBindingArray(input, 'batchNormStats'))
}

/** The statistics of all values together, merged in the order given. Throws ArgumentError for none, ShapeError. */
export function mergeStats(stats: readonly ChannelStats[]): ChannelStats {
  if (stats.length === 0) throw argumentError('mergeStats: expected statistics, got an empty list')
  return native.mergeStats([...stats])
}

/**
 * The statistics of all ranks' values together, merged in rank order: the same bits on every rank. One exchange.
 *
 * @param group default: the default group; one process without a group gets `local` back
 * @throws DistributedError as `syncBatchNorm`
 */
export function gatherStats(local: ChannelStats, group: ProcessGroup | null = null): ChannelStats {
  return native.gatherStats(local, syncGroup(group, 'gatherStats'))
}

/**
 * y = weight·(x − mean)·invstd + bias with the given statistics.
 *
 * @param args weight, bias, eps; runningMean and runningVar, if given, are updated in place after the output is computed,
 *   unless `training` is false
 * @returns of the input's kind, shape, dtype and memory format
 */
export function batchNormApply<T extends Tensor | ArrayTensor>(
  input: T,
  stats: ChannelStats,
  args: BatchNormArguments<T | TypedArray> = {},
): T {
  if (!args.runningMean !== !args.runningVar) {
    throw argumentError('batchNormApply: expected both runningMean and runningVar or neither, got one')
  }
  const apply = input instanceof Tensor ? applyTensor : applyArray
  return apply(input as Tensor & ArrayTensor, stats, args as Arguments) as T
}

function applyTensor(input: Tensor, stats: ChannelStats, args: Arguments): Tensor {
  const { weight, bias, runningMean, runningVar, eps = 1e-5, momentum = 0.1 } = args
  return withChannelOperands(input.device, { weight, bias, runningMean, runningVar }, (operands) => {
    const output = native.batchNormApply(nativeOf(input), stats, operands.weight.native, operands.bias.native, eps)
    const { native: mean } = operands.runningMean
    const { native: variance } = operands.runningVar
    if ((args.training ?? true) && mean && variance) {
      native.updateRunningStats(mean, variance, stats, momentum)
      operands.runningMean.writeBack()
      operands.runningVar.writeBack()
    }
    return wrap(output)
  })
}

function applyArray(input: ArrayTensor, stats: ChannelStats, args: Arguments): ArrayTensor {
  const borrowed = toBindingArray(input, 'batchNormApply')
  const weight = channelArray(args.weight, 'weight')
  const bias = channelArray(args.bias, 'bias')
  const mean = channelArray(args.runningMean, 'runningMean')
  const variance = channelArray(args.runningVar, 'runningVar')
  const data = newLike(borrowed.data)
  native.batchNormApplyArray(borrowed, stats, weight, bias, args.eps ?? 1e-5, data)
  if ((args.training ?? true) && mean && variance) {
    native.updateRunningStatsArray(mean, variance, stats, args.momentum ?? 0.1)
  }
  return { ...input, data }
}

/**
 * This rank's sums of dy and of dy·(x − mean). gradBias is `sumDy`; gradWeight is `sumDyXmu` times invstd.
 *
 * @param gradOutput of the input's kind, shape and dtype
 */
export function batchNormBackwardReduce(
  gradOutput: Tensor | ArrayTensor,
  input: Tensor | ArrayTensor,
  stats: ChannelStats,
  eps: number,
): BackwardSums {
  if (gradOutput instanceof Tensor && input instanceof Tensor) {
    return native.batchNormBackwardReduce(nativeOf(gradOutput), nativeOf(input), stats, eps)
  }
  const { gradient, values } = toArrays(gradOutput, input, 'batchNormBackwardReduce')
  return native.batchNormBackwardReduceArray(gradient, values, stats, eps)
}

/**
 * dx = weight·invstd·(dy − Σdy/n − (x − mean)·invstd²·Σdy(x − mean)/n), with n and the mean from `stats` and the sums
 * over all ranks.
 *
 * @param args weight, eps
 * @returns of the input's kind, shape and dtype
 */
export function batchNormBackwardApply<T extends Tensor | ArrayTensor>(
  gradOutput: T,
  input: T,
  stats: ChannelStats,
  sums: BackwardSums,
  args: BatchNormArguments<T | TypedArray> = {},
): T {
  const apply = gradOutput instanceof Tensor && input instanceof Tensor ? backwardTensor : backwardArray
  return apply(gradOutput as Tensor & ArrayTensor, input as Tensor & ArrayTensor, stats, sums, args as Arguments) as T
}

function backwardTensor(
  gradOutput: Tensor,
  input: Tensor,
  stats: ChannelStats,
  sums: BackwardSums,
  args: Arguments,
): Tensor {
  return withChannelOperands(input.device, { weight: args.weight }, ({ weight }) => {
    const [gradient, values] = [nativeOf(gradOutput), nativeOf(input)]
    return wrap(native.batchNormBackwardApply(gradient, values, stats, sums, weight.native, args.eps ?? 1e-5))
  })
}

function backwardArray(
  gradOutput: ArrayTensor,
  input: ArrayTensor,
  stats: ChannelStats,
  sums: BackwardSums,
  args: Arguments,
): ArrayTensor {
  const { gradient, values } = toArrays(gradOutput, input, 'batchNormBackwardApply')
  const weight = channelArray(args.weight, 'weight')
  const eps = args.eps ?? 1e-5
  const data = newLike(values.data)
  native.batchNormBackwardApplyArray(gradient, values, stats, sums, weight, eps, data)
  return { ...gradOutput, data }
}

function toArrays(gradOutput: Kind, input: Kind, operation: string) {
  if (gradOutput instanceof Tensor || input instanceof Tensor) {
    throw argumentError(`${operation}: expected gradOutput and input of one kind, got a Tensor and an array`)
  }
  return {
    gradient: toBindingArray(gradOutput, `${operation} gradOutput`),
    values: toBindingArray(input, `${operation} input`),
  }
}
