/** The same elements under another shape. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Shape } from '../types.ts'
import { countElements, normalizeDim, sameShape, toShape } from './shape.ts'

interface Shapes {
  readonly from: Shape
  readonly to: Shape
}

const operation: Operation<Shapes> = {
  name: 'reshape',
  sharesStorage: true,
  forward: (_context, [x], { to }) => [native.tensorReshape(nativeOf(x as Tensor), [...to])],
  backward: (_context, [gradient], { from }) => [reshape(gradient as Tensor, from)],
}

/** See `Tensor.reshape`. */
export function reshape(x: Tensor, shape: Shape): Tensor {
  return applySingle(operation, [x], { from: x.shape, to: toShape(shape, 'reshape') })
}

/** `reshape` for this library's own use: `x` itself if it has the shape. */
export function reshapeIfNeeded(x: Tensor, shape: Shape): Tensor {
  return sameShape(x.shape, shape) ? x : reshape(x, shape)
}

/** Joins the dimensions from `startDim` to `endDim`, both included; negative ones count from the end. */
export function flatten(x: Tensor, startDim: number, endDim: number): Tensor {
  const { shape } = x
  if (shape.length === 0) return reshape(x, [1])
  const start = normalizeDim(startDim, shape.length, 'flatten')
  const end = normalizeDim(endDim, shape.length, 'flatten')
  const joined = countElements(shape.slice(start, end + 1))
  return reshape(x, [...shape.slice(0, start), joined, ...shape.slice(end + 1)])
}
