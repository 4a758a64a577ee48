/** Loss modules; call them with (input, target). */
import { crossEntropy } from '../ops/cross-entropy.ts'
import type { CrossEntropyOptions } from '../ops/cross-entropy.ts'
import { mseLoss } from '../ops/mse-loss.ts'
import { toReduction } from '../ops/reduction.ts'
import type { Tensor } from '../tensor.ts'
import type { Reduction } from '../types.ts'
import { Module } from './module.ts'

/** Cross entropy between logits (N, C, …) and int64 class indices (N, …). */
export class CrossEntropyLoss extends Module {
  readonly reduction: Reduction
  readonly ignoreIndex: number

  /** @param options `reduction`: default 'mean'. `ignoreIndex`: default −100. */
  constructor(options: CrossEntropyOptions = {}) {
    super()
    this.reduction = toReduction(options.reduction, 'CrossEntropyLoss')
    this.ignoreIndex = options.ignoreIndex ?? -100
  }

  override forward(input: Tensor, target: Tensor): Tensor {
    return crossEntropy(input, target, { reduction: this.reduction, ignoreIndex: this.ignoreIndex })
  }
}

/** Mean squared error between tensors of one shape. */
export class MSELoss extends Module {
  readonly reduction: Reduction

  /** @param options `reduction`: default 'mean'. */
  constructor(options: { reduction?: Reduction } = {}) {
    super()
    this.reduction = toReduction(options.reduction, 'MSELoss')
  }

  override forward(input: Tensor, target: Tensor): Tensor {
    return mseLoss(input, target, { reduction: this.reduction })
  }
}
