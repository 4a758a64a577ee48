/** Cross entropy between logits and class indices. */
import { applySingle, notDifferentiable } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Reduction } from '../types.ts'
import { toReduction } from './reduction.ts'
import { integer } from './shape.ts'

/** Options of the loss. */
export interface CrossEntropyOptions {
  /** 'mean' divides by the number of targets that count. Default: 'mean'. */
  reduction?: Reduction
  /** Targets of this value do not count. Default: −100. */
  ignoreIndex?: number
}

interface Options {
  readonly ignoreIndex: number
  readonly reduction: Reduction
}

const operation: Operation<Options> = {
  name: 'crossEntropy',
  forward(context, inputs, { ignoreIndex, reduction }) {
    const [logits, targets] = inputs as [Tensor, Tensor]
    const result = native.crossEntropy(nativeOf(logits), nativeOf(targets), ignoreIndex, reduction)
    context.saveResult(result.logProbs)
    context.saveResult(result.counted)
    context.save(targets)
    return [result.loss]
  },
  backward({ savedTensors }, [gradient], options) {
    return [applySingle(backwardOperation, [gradient as Tensor, ...savedTensors], options), null]
  },
}

const backwardOperation: Operation<Options> = {
  name: 'crossEntropy backward',
  forward(_context, inputs, { ignoreIndex, reduction }) {
    const [gradient, logProbs, counted, targets] = inputs.map((input) => nativeOf(input as Tensor))
    return [native.crossEntropyBackward(gradient!, logProbs!, targets!, counted!, ignoreIndex, reduction)]
  },
  backward: notDifferentiable('crossEntropy backward'),
}

/**
 * −log softmax(input) at the target class. Differentiable once, with respect to `input`.
 *
 * @param input logits (N, C) or (N, C, d…), float32 or float64
 * @param target int64 class indices (N) or (N, d…)
 * @returns a 0-dimensional tensor, or one loss per target with reduction 'none'; the mean over no target is NaN
 */
export function crossEntropy(input: Tensor, target: Tensor, options: CrossEntropyOptions = {}): Tensor {
  const reduction = toReduction(options.reduction, 'crossEntropy')
  const ignoreIndex = integer(options.ignoreIndex ?? -100, 'crossEntropy ignoreIndex')
  return applySingle(operation, [input, target], { ignoreIndex, reduction })
}
