/** Undoing a broadcast by summation, and its opposite. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Shape } from '../types.ts'
import { sameShape } from './shape.ts'

interface Shapes {
  readonly from: Shape
  readonly to: Shape
}

const sumToOperation: Operation<Shapes> = {
  name: 'sumTo',
  forward: (_context, [x], { to }) => [native.sumTo(nativeOf(x as Tensor), [...to])],
  backward: (_context, [gradient], { from }) => [expand(gradient as Tensor, from)],
}

const expandOperation: Operation<Shapes> = {
  name: 'expand',
  forward: (_context, [x], { to }) => [native.expand(nativeOf(x as Tensor), [...to])],
  backward: (_context, [gradient], { from }) => [sumTo(gradient as Tensor, from)],
}

/** Sums so that the result has `shape`, which broadcasts to that of `x`; `x` itself if it has it. */
export function sumTo(x: Tensor, shape: Shape): Tensor {
  return sameShape(x.shape, shape) ? x : applySingle(sumToOperation, [x], { from: x.shape, to: shape })
}

/** Repeats `x` to `shape`; `x` itself if it has it. */
export function expand(x: Tensor, shape: Shape): Tensor {
  return sameShape(x.shape, shape) ? x : applySingle(expandOperation, [x], { from: x.shape, to: shape })
}
