/** Mean squared error. */
import { ShapeError } from '../errors.ts'
import { runScope } from '../scope.ts'
import type { Tensor } from '../tensor.ts'
import type { Reduction } from '../types.ts'
import { mul, sub } from './arithmetic.ts'
import { toReduction } from './reduction.ts'
import { sameShape } from './shape.ts'
import { mean, sum } from './sum.ts'

/**
 * (input − target)², averaged, summed or as it is.
 *
 * @param input any shape, float32 or float64
 * @param target of the input's shape and dtype
 * @param options `reduction`: default 'mean', over all elements
 */
export function mseLoss(input: Tensor, target: Tensor, options: { reduction?: Reduction } = {}): Tensor {
  const reduction = toReduction(options.reduction, 'mseLoss')
  if (!sameShape(input.shape, target.shape)) {
    const message = `mseLoss: expected a target of shape [${input.shape.join(', ')}], got [${target.shape.join(', ')}]`
    throw new ShapeError('ERR_SHAPE', message)
  }
  return runScope(() => {
    const difference = sub(input, target)
    const squares = mul(difference, difference)
    if (reduction === 'none') return squares
    return reduction === 'sum' ? sum(squares) : mean(squares)
  })
}
