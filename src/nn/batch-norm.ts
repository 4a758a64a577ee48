/** Batch normalization layers over this rank's batch, and what SyncBatchNorm shares with them. */
import { isHalf } from '../device.ts'
import { argumentError, ShapeError } from '../errors.ts'
import { native } from '../native.ts'
import { normalize } from '../ops/batch-norm.ts'
import type { NormalizeArguments } from '../ops/batch-norm.ts'
import { nativeOf, wrap } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { DType } from '../types.ts'
import { positiveInteger, toFactory } from './arguments.ts'
import type { FactoryOptions } from './arguments.ts'
import { Module, registerBufferAs, registerParameterAs } from './module.ts'
import { parameter } from './parameter.ts'

/** Options of every batch norm layer. */
export interface BatchNormOptions extends FactoryOptions {
  /** Added to the variance; positive. Default: 1e-5. */
  eps?: number
  /** Weight of the new value in the running statistics; null: their average over all batches. Default: 0.1. */
  momentum?: number | null
  /** Whether there are a weight and a bias. Default: true. */
  affine?: boolean
  /** Whether there is a bias, if affine. Default: true. */
  bias?: boolean
  /** Whether running statistics are kept; without, the batch's are used in evaluation too. Default: true. */
  trackRunningStats?: boolean
}

/**
 * y = weight·(x − mean)·invstd + bias per channel, for inputs (N, C, …). In training mode mean and variance are the
 * batch's, and the running statistics move towards them, with the unbiased variance; in evaluation mode they are the
 * running ones.
 *
 * State-dict keys are PyTorch's: weight, bias, running_mean, running_var, num_batches_tracked.
 */
export abstract class BatchNormBase extends Module {
  /** C. */
  readonly numFeatures: number
  /** Added to the variance. */
  eps: number
  /** Weight of the new value in the running statistics; null: their average over all batches. */
  momentum: number | null
  /** Whether weight, and bias, exist. */
  readonly affine: boolean
  /** Whether running statistics are kept. */
  readonly trackRunningStats: boolean
  /** (C), ones at first. */
  weight: Tensor | null = null
  /** (C), zeros at first. */
  bias: Tensor | null = null
  /** (C), zeros at first. float32 where the layer is float16 or bfloat16, which could not hold a moving average. */
  runningMean: Tensor | null = null
  /** (C), ones at first; the unbiased variance. Of the same dtype. */
  runningVar: Tensor | null = null
  /** int64, 0 at first: how many batches moved the running statistics. */
  numBatchesTracked: Tensor | null = null

  /** @throws ArgumentError for numFeatures that is no positive integer, eps that is not positive, momentum NaN or ±∞ */
  constructor(numFeatures: number, options: BatchNormOptions = {}) {
    super()
    const factory = toFactory(options, this.constructor.name)
    this.numFeatures = positiveInteger(numFeatures, `${this.constructor.name} numFeatures`)
    this.eps = checkEps(options.eps ?? 1e-5)
    this.momentum = checkMomentum(options.momentum === undefined ? 0.1 : options.momentum)
    this.affine = options.affine ?? true
    this.trackRunningStats = options.trackRunningStats ?? true
    this.#registerParameters(factory, this.affine && (options.bias ?? true))
    this.#registerBuffers(factory)
  }

  #registerParameters(factory: Required<FactoryOptions>, bias: boolean): void {
    registerParameterAs(this, 'weight', 'weight', this.affine ? filledParameter(this.numFeatures, 1, factory) : null)
    registerParameterAs(this, 'bias', 'bias', bias ? filledParameter(this.numFeatures, 0, factory) : null)
  }

  #registerBuffers({ dtype, device }: Required<FactoryOptions>): void {
    const make = (shape: number[], value: number, type: DType): Tensor | null =>
      this.trackRunningStats ? wrap(native.tensorFull(shape, value, type, 'contiguous', device)) : null
    const statistics = isHalf(dtype) ? 'float32' : dtype
    const precise = { atLeastFloat32: true }
    registerBufferAs(this, 'runningMean', 'running_mean', make([this.numFeatures], 0, statistics), precise)
    registerBufferAs(this, 'runningVar', 'running_var', make([this.numFeatures], 1, statistics), precise)
    registerBufferAs(this, 'numBatchesTracked', 'num_batches_tracked', make([], 0, 'int64'))
  }

  /** Running statistics as at first: mean 0, variance 1, no batches. */
  resetRunningStats(): void {
    fill(this.runningMean, 0)
    fill(this.runningVar, 1)
    fill(this.numBatchesTracked, 0)
  }

  /** Running statistics, weight (ones) and bias (zeros) as at first. */
  resetParameters(): void {
    this.resetRunningStats()
    fill(this.weight, 1)
    fill(this.bias, 0)
  }

  /** (N, C, …) → the same shape, dtype and memory format. */
  override forward(input: Tensor): Tensor {
    this.checkInput(input)
    return normalize(input, this.normalizeArguments(), null)
  }

  /** @internal Throws ShapeError unless the input's number of dimensions is one this layer takes. */
  protected abstract checkInput(input: Tensor): void

  /** @internal The arguments of the function, as the mode of this module makes them. */
  protected normalizeArguments(): NormalizeArguments {
    checkEps(this.eps)
    checkMomentum(this.momentum)
    const { weight, bias, runningMean, runningVar, numBatchesTracked, momentum, eps } = this
    const training = this.training || (runningMean === null && runningVar === null)
    return { weight, bias, runningMean, runningVar, numBatchesTracked, momentum, eps, training }
  }
}

function filledParameter(length: number, value: number, { dtype, device }: Required<FactoryOptions>): Tensor {
  return parameter(wrap(native.tensorFull([length], value, dtype, 'contiguous', device)))
}

/** An in-place write that is no part of any graph. */
function fill(tensor: Tensor | null, value: number): void {
  if (tensor) native.tensorFillInPlace(nativeOf(tensor), value)
}

function checkEps(eps: number): number {
  if (Number.isFinite(eps) && eps > 0) return eps
  throw argumentError(`batch norm: expected a positive eps, got ${String(eps)}`)
}

function checkMomentum(momentum: number | null): number | null {
  if (momentum === null || Number.isFinite(momentum)) return momentum
  throw argumentError(`batch norm: expected a finite momentum or null, got ${String(momentum)}`)
}

/** Throws with PyTorch's words unless the number of dimensions is among `allowed`. */
function checkDimensions(input: Tensor, allowed: readonly number[]): void {
  const { length } = input.shape
  if (allowed.includes(length)) return
  const expected = allowed.map((count) => `${count}D`).join(' or ')
  throw new ShapeError('ERR_SHAPE', `expected ${expected} input (got ${length}D input)`)
}

/** Throws with PyTorch's words unless there are a batch and a channel dimension. */
export function checkAtLeast2D(input: Tensor): void {
  const { length } = input.shape
  if (length < 2) throw new ShapeError('ERR_SHAPE', `expected at least 2D input (got ${length}D input)`)
}

/** Batch norm of (N, C) or (N, C, L). */
export class BatchNorm1d extends BatchNormBase {
  protected override checkInput(input: Tensor): void {
    checkDimensions(input, [2, 3])
  }
}

/** Batch norm of (N, C, H, W). */
export class BatchNorm2d extends BatchNormBase {
  protected override checkInput(input: Tensor): void {
    checkDimensions(input, [4])
  }
}

/** Batch norm of (N, C, D, H, W). */
export class BatchNorm3d extends BatchNormBase {
  protected override checkInput(input: Tensor): void {
    checkDimensions(input, [5])
  }
}

/** Batch norm of (N, C, …) with any number of dimensions: what a SyncBatchNorm that was never converted reverts to. */
export class BatchNorm extends BatchNormBase {
  protected override checkInput(input: Tensor): void {
    checkAtLeast2D(input)
  }
}
