/**
 * Batch normalization as a differentiable operation, over this rank alone or over a process group.
 *
 * y = weight·(x − mean)·invstd + bias. The native side computes the statistics, exchanges them, updates the running
 * buffers after everything else succeeded, and keeps what backward needs.
 */
import { applyFunction, applySingle, notDifferentiable } from '../autograd/operation.ts'
import type { Operation, OperationContext } from '../autograd/operation.ts'
import { syncGroup } from '../sync-group.ts'
import { argumentError } from '../errors.ts'
import { native } from '../native.ts'
import type { BindingBatchNormOptions, BindingGroup, BindingSaved, BindingTensor } from '../native.ts'
import { nativeOrNull } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { BatchNormArguments } from '../types.ts'
import type { ProcessGroup } from '../distributed/process-group.ts'

/** What a module adds to the public arguments. */
export interface NormalizeArguments extends Omit<BatchNormArguments<Tensor>, 'momentum'> {
  /** null: the running statistics are the average over all batches; needs `numBatchesTracked`. */
  momentum?: number | null
  numBatchesTracked?: Tensor | null
}

/** Native statistics that the nodes of forward and backward share. */
class SharedStatistics {
  readonly native: BindingSaved
  #references = 1

  constructor(saved: BindingSaved) {
    this.native = saved
  }

  retain(): this {
    this.#references += 1
    return this
  }

  release(): void {
    this.#references -= 1
    if (this.#references === 0) native.savedDispose(this.native)
  }
}

interface ForwardOptions {
  readonly buffers: { mean: BindingTensor | null; variance: BindingTensor | null; batches: BindingTensor | null }
  readonly native: BindingBatchNormOptions
  readonly group: BindingGroup | null
  statistics: SharedStatistics | null
}

const operation: Operation<ForwardOptions> = {
  name: 'batchNorm',
  forward(context, inputs, options) {
    const [input, weight, bias] = inputs.map(nativeOrNull)
    const { mean, variance, batches } = options.buffers
    const { output, saved } = native.batchNormForward(
      input!,
      weight ?? null,
      bias ?? null,
      mean,
      variance,
      batches,
      options.native,
      options.group,
    )
    const statistics = new SharedStatistics(saved)
    options.statistics = statistics
    context.onRelease(() => statistics.release())
    context.save(inputs[0] ?? null, inputs[1] ?? null)
    return [output]
  },
  backward({ needs, savedTensors }, [gradient], { statistics }) {
    const [input, weight] = savedTensors as [Tensor, Tensor | null]
    return gradients(gradient as Tensor, input, weight, { statistics: statistics as SharedStatistics, needs })
  },
}

interface BackwardOptions {
  readonly statistics: SharedStatistics
  readonly needs: readonly boolean[]
}

/** The gradients of input, weight and bias, null where none is needed. */
function gradients(
  gradient: Tensor,
  input: Tensor,
  weight: Tensor | null,
  options: BackwardOptions,
): (Tensor | null)[] {
  const results = applyFunction(backwardOperation, [gradient, input, weight], options)
  return options.needs.map((needed) => (needed ? (results.shift() ?? null) : null))
}

const backwardOperation: Operation<BackwardOptions> = {
  name: 'batchNorm backward',
  forward(context, inputs, { statistics, needs }) {
    const [gradient, input, weight] = inputs.map(nativeOrNull)
    const asked = { input: needs[0] ?? false, weight: needs[1] ?? false, bias: needs[2] ?? false }
    const results = native.batchNormBackward(gradient!, input!, weight ?? null, statistics.native, asked)
    context.save(...inputs)
    keepStatistics(context, statistics)
    return [results.gradInput, results.gradWeight, results.gradBias].filter((result) => result !== null)
  },
  backward({ needs, savedTensors }, upstream, options) {
    const [gradient, input, weight] = savedTensors as [Tensor, Tensor, Tensor | null]
    const remaining = [...upstream]
    const [forInput, forWeight, forBias] = options.needs.map((needed) => (needed ? (remaining.shift() ?? null) : null))
    const operands = [input, gradient, weight, forInput ?? null, forWeight ?? null, forBias ?? null]
    const [gradInput, gradGradient, gradWeight] = applyFunction(doubleBackwardOperation, operands, options.statistics)
    return [
      needs[0] ? (gradGradient ?? null) : null,
      needs[1] ? (gradInput ?? null) : null,
      needs[2] ? (gradWeight ?? null) : null,
    ]
  },
}

function keepStatistics(context: OperationContext, statistics: SharedStatistics): void {
  if (!context.recorded) return
  statistics.retain()
  context.onRelease(() => statistics.release())
}

const doubleBackwardOperation: Operation<SharedStatistics> = {
  name: 'batchNorm double backward',
  forward(_context, inputs, statistics) {
    const [input, gradient, weight, forInput, forWeight, forBias] = inputs.map(nativeOrNull)
    const results = native.batchNormDoubleBackward(
      input!,
      gradient!,
      weight ?? null,
      statistics.native,
      forInput ?? null,
      forWeight ?? null,
      forBias ?? null,
    )
    return [results.gradInput, results.gradGradOutput, results.gradWeight].filter((result) => result !== null)
  },
  backward: notDifferentiable('batchNorm double backward'),
}

/** Batch norm over `group`, or over this rank alone if it is null. The arguments are those of the public functions. */
export function normalize(input: Tensor, args: NormalizeArguments, group: BindingGroup | null): Tensor {
  const training = args.training ?? false
  if (!args.runningMean !== !args.runningVar) {
    throw argumentError('batchNorm: expected both runningMean and runningVar or neither, got one')
  }
  const updates = training && args.runningMean != null
  return applySingle(operation, [input, args.weight ?? null, args.bias ?? null], {
    buffers: {
      mean: nativeOrNull(args.runningMean),
      variance: nativeOrNull(args.runningVar),
      batches: nativeOrNull(updates ? args.numBatchesTracked : null),
    },
    native: { training, eps: args.eps ?? 1e-5, ...toMomentum(updates ? args.momentum : undefined) },
    group,
    statistics: null,
  })
}

/** On the native side a missing momentum is the cumulative average. */
function toMomentum(momentum: number | null | undefined): { momentum?: number } {
  return momentum === null ? {} : { momentum: momentum ?? 0.1 }
}

/**
 * Batch normalization over this rank's batch. Twice differentiable.
 *
 * @param input (N, C, …), float32 or float64 (on a GPU also float16 and bfloat16)
 * @param args see BatchNormArguments. `training` defaults to false, as in PyTorch: the running statistics are used, and
 *   are required. With `training`, the batch's statistics are used and the running ones, if given, are updated in place.
 * @throws ShapeError, DTypeError for operands that do not fit; ERR_TOO_FEW_VALUES when training on one value per
 *   channel; ArgumentError for an `eps` that is not positive. Nothing is changed then.
 */
export function batchNorm(input: Tensor, args: BatchNormArguments<Tensor> = {}): Tensor {
  return normalize(input, args, null)
}

/**
 * Batch normalization over the batches of all ranks of `args.group`. Differentiable; one exchange forward, one backward
 * if the input needs a gradient. Every rank of the group must call it.
 *
 * @param args as in `batchNorm`, but `training` defaults to true; without it nothing is exchanged. `group`: default the
 *   default process group; one process without a group computes plain batch norm.
 * @throws as `batchNorm`; DistributedError without a process group where WORLD_SIZE is above 1, for a group that this
 *   rank is not in, and when the exchange fails.
 */
export function syncBatchNorm(
  input: Tensor,
  args: BatchNormArguments<Tensor> & { group?: ProcessGroup | null } = {},
): Tensor {
  const training = args.training ?? true
  const group = training ? syncGroup(args.group ?? null, 'syncBatchNorm') : null
  return normalize(input, { ...args, training }, group)
}
