/** Sums and means over dimensions. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { argumentError } from '../errors.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Shape } from '../types.ts'
import { div } from './arithmetic.ts'
import { reshapeIfNeeded } from './reshape.ts'
import { countElements, integer, normalizeDim } from './shape.ts'
import { expand } from './sum-to.ts'

interface Options {
  readonly dims: readonly number[] | null
  readonly mean: boolean
  readonly shape: Shape
}

const operation: Operation<Options> = {
  name: 'sum',
  forward: (_context, [x], { dims, mean }) => [native.sumDims(nativeOf(x as Tensor), dims && [...dims], mean)],
  backward: (_context, [gradient], options) => [spread(gradient as Tensor, options)],
}

const meanOperation: Operation<Options> = { ...operation, name: 'mean' }

/** Every element gets the gradient of the sum that it was part of; of a mean, its share. */
function spread(gradient: Tensor, { dims, mean, shape }: Options): Tensor {
  const summed = new Set(dims?.map((dim) => normalizeDim(dim, shape.length, 'sum')) ?? shape.keys())
  const kept = shape.map((size, dim) => (summed.has(dim) ? 1 : size))
  const share = mean ? div(gradient, countElements(shape) / countElements(kept)) : gradient
  return expand(reshapeIfNeeded(share, kept), shape)
}

/** See `Tensor.sum`. */
export function sum(x: Tensor, dims?: readonly number[] | null): Tensor {
  return applySingle(operation, [x], { dims: toDims(dims, 'sum'), mean: false, shape: x.shape })
}

/** See `Tensor.mean`. */
export function mean(x: Tensor, dims?: readonly number[] | null): Tensor {
  return applySingle(meanOperation, [x], { dims: toDims(dims, 'mean'), mean: true, shape: x.shape })
}

function toDims(dims: readonly number[] | null | undefined, operation: string): number[] | null {
  if (dims === null || dims === undefined) return null
  if (Array.isArray(dims)) return dims.map((dim) => integer(dim as number, `${operation} dims`))
  throw argumentError(`${operation}: expected an array of dimensions, got ${String(dims)}`)
}
