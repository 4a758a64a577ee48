/**
 * Synchronized batch norm for trainers with their own gradients: a forward and a backward.
 *
 * Both take tensors of this library or plain typed arrays; results come back in the same kind. Typed arrays are borrowed,
 * never copied: the saved object refers to the input and the weight until backward, so they must keep their values. The
 * functions are not recorded for backward; 'syncbn/functional' has those that are.
 */
import { channelArray, newLike, toBindingArray, withChannelOperands } from './batch-norm-operands.ts'
import type { ChannelOperand } from './batch-norm-operands.ts'
import { SavedTensor } from './autograd/saved-tensor.ts'
import type { ProcessGroup } from './distributed/process-group.ts'
import { argumentError } from './errors.ts'
import { Handle } from './handle.ts'
import { native } from './native.ts'
import type { BindingBatchNormOptions, BindingGroup, BindingSaved, BindingTensor } from './native.ts'
import { SavedStatistics } from './saved-batch-norm.ts'
import type { SavedArrays, SavedBatchNorm, SavedTensors } from './saved-batch-norm.ts'
import { runScope } from './scope.ts'
import { syncGroup } from './sync-group.ts'
import { describe, nativeOf, nativeOrNull, Tensor, wrap } from './tensor.ts'
import type { ArrayTensor, BatchNormArguments, TypedArray } from './types.ts'

export type { SavedBatchNorm } from './saved-batch-norm.ts'

/** The options of `syncBatchNorm`. */
export interface SyncBatchNormArguments<T> extends BatchNormArguments<T> {
  /** The ranks to synchronize over. Default: the default group. */
  group?: ProcessGroup | null
}

/** What `syncBatchNorm` returns. */
export interface BatchNormResult<T> {
  /** Of the input's shape, dtype and memory format. */
  output: T
  /** For `syncBatchNormBackward`; dispose it when it is no longer needed. */
  saved: SavedBatchNorm
}

type Kind = Tensor | ArrayTensor
type Arguments = SyncBatchNormArguments<Kind | TypedArray>

/**
 * y = weight·(x − mean)·invstd + bias per channel, over the batches of all ranks of a group.
 *
 * @param input (N, C, …) of float32 or float64; of a half type too on a GPU
 * @param args weight, bias, runningMean, runningVar: C values each, of the input's dtype or float32, on its device;
 *   typed arrays with a tensor are copied there, and running statistics back, which waits for the device. `training`: default
 *   true: statistics of the batch, running ones updated in place; false: the running ones are used and nothing is
 *   exchanged. `group`: default the default group; one process without a group computes plain batch norm.
 * @throws ShapeError, DTypeError, ArgumentError for operands that do not fit, before any side effect; DistributedError
 *   without a process group where WORLD_SIZE is above 1, for a group this rank is not in, and when the exchange fails
 */
export function syncBatchNorm<T extends Tensor | ArrayTensor>(
  input: T,
  args: SyncBatchNormArguments<T | TypedArray> = {},
): BatchNormResult<T> {
  const training = args.training ?? true
  const group = training ? syncGroup(args.group ?? null, 'syncBatchNorm') : null
  const options = { training, momentum: args.momentum ?? 0.1, eps: args.eps ?? 1e-5 }
  const forward = input instanceof Tensor ? forwardTensor : forwardArray
  return forward(input as Tensor & ArrayTensor, args as Arguments, options, group) as BatchNormResult<T>
}

function forwardTensor(
  input: Tensor,
  args: Arguments,
  options: BindingBatchNormOptions,
  group: BindingGroup | null,
): BatchNormResult<Tensor> {
  const { weight, bias, runningMean, runningVar } = args
  return withChannelOperands(input.device, { weight, bias, runningMean, runningVar }, (operands) => {
    const { output, saved } = native.batchNormForward(
      nativeOf(input),
      operands.weight.native,
      operands.bias.native,
      operands.runningMean.native,
      operands.runningVar.native,
      null,
      options,
      group,
    )
    if (options.training) writeBack([operands.runningMean, operands.runningVar], output, saved)
    const kept = { kind: 'tensor' as const, input: SavedTensor.of(input), weight: keepWeight(operands.weight.native) }
    return { output: wrap(output), saved: new SavedStatistics(saved, kept, bias != null) }
  })
}

/** Copies running statistics back; what a GPU then reports ends the call, whose results are dropped. */
function writeBack(operands: readonly ChannelOperand[], output: BindingTensor, saved: BindingSaved): void {
  try {
    for (const operand of operands) operand.writeBack()
  } catch (error) {
    native.tensorDispose(output)
    native.savedDispose(saved)
    throw error
  }
}

/** A reference of the saved object's own. */
function keepWeight(weight: BindingTensor | null): SavedTensor | null {
  return weight && new SavedTensor(new Handle(native.tensorAlias(weight)), null)
}

function forwardArray(
  input: ArrayTensor,
  args: Arguments,
  options: BindingBatchNormOptions,
  group: BindingGroup | null,
): BatchNormResult<ArrayTensor> {
  const borrowed = toBindingArray(input, 'syncBatchNorm')
  const weight = channelArray(args.weight, 'weight')
  const bias = channelArray(args.bias, 'bias')
  const mean = channelArray(args.runningMean, 'runningMean')
  const variance = channelArray(args.runningVar, 'runningVar')
  const output = newLike(borrowed.data)
  const saved = native.batchNormForwardArray(borrowed, weight, bias, mean, variance, options, group, output)
  const kept = { kind: 'array' as const, input: borrowed, weight }
  return { output: { ...input, data: output }, saved: new SavedStatistics(saved, kept, bias !== null) }
}

/**
 * The gradients of `syncBatchNorm`. That of the input takes the sums over all ranks: one exchange if the forward
 * synchronized. Those of weight and bias are this rank's own.
 *
 * @param gradOutput of the input's kind, shape and dtype
 * @returns gradWeight, gradBias: null where the forward had no weight, no bias
 * @throws ArgumentError for another kind than the forward's and (ERR_DISPOSED) for a disposed `saved`; ShapeError,
 *   DTypeError; AutogradError (ERR_SAVED_TENSOR_MODIFIED) for a tensor that was changed in place since; DistributedError
 */
export function syncBatchNormBackward<T extends Tensor | ArrayTensor>(
  gradOutput: T,
  saved: SavedBatchNorm,
): { gradInput: T; gradWeight: T | null; gradBias: T | null } {
  if (!(saved instanceof SavedStatistics)) {
    throw argumentError(`syncBatchNormBackward: expected what syncBatchNorm saved, got ${describe(saved)}`)
  }
  const { operands } = saved
  const kind = gradOutput instanceof Tensor ? 'tensor' : 'array'
  if (kind !== operands.kind) {
    throw argumentError(`syncBatchNormBackward: expected gradOutput as the input was, ${operands.kind}, got ${kind}`)
  }
  const gradients =
    operands.kind === 'tensor'
      ? backwardTensor(gradOutput as Tensor, saved, operands)
      : backwardArray(gradOutput as ArrayTensor, saved, operands)
  return gradients as { gradInput: T; gradWeight: T | null; gradBias: T | null }
}

interface Results<T> {
  gradInput: T
  gradWeight: T | null
  gradBias: T | null
}

function backwardTensor(gradOutput: Tensor, saved: SavedStatistics, operands: SavedTensors): Results<Tensor> {
  const statistics = saved.native
  return runScope(() => {
    const input = nativeOf(operands.input.unpack('syncBatchNorm'))
    const weight = nativeOrNull(operands.weight?.unpack('syncBatchNorm'))
    const needs = { input: true, weight: weight !== null, bias: saved.hasBias }
    const results = native.batchNormBackward(nativeOf(gradOutput), input, weight, statistics, needs)
    return {
      gradInput: wrap(results.gradInput as NonNullable<typeof results.gradInput>),
      gradWeight: results.gradWeight && wrap(results.gradWeight),
      gradBias: results.gradBias && wrap(results.gradBias),
    }
  })
}

function backwardArray(gradOutput: ArrayTensor, saved: SavedStatistics, operands: SavedArrays): Results<ArrayTensor> {
  const { input, weight } = operands
  const borrowed = toBindingArray(gradOutput, 'syncBatchNormBackward')
  const parameter = weight ?? input.data
  const numFeatures = input.shape[1] ?? 0
  const results = {
    gradInput: newLike(input.data),
    gradWeight: newLike(parameter, numFeatures),
    gradBias: newLike(parameter, numFeatures),
  }
  native.batchNormBackwardArray(borrowed, input, weight, saved.native, results)
  const channels = (data: TypedArray): ArrayTensor => ({ data, shape: [data.length] })
  return {
    gradInput: { ...gradOutput, data: results.gradInput },
    gradWeight: weight && channels(results.gradWeight),
    gradBias: saved.hasBias ? channels(results.gradBias) : null,
  }
}
