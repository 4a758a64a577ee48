/** Indices of the largest values. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { withGradMode } from '../autograd/grad-mode.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { integer } from './shape.ts'

const operation: Operation<number> = {
  name: 'argmax',
  forward: (_context, [x], dim) => [native.argmax(nativeOf(x as Tensor), dim)],
  backward: () => [null],
}

/** See `Tensor.argmax`. Integers have no gradient, so the operation is never recorded. */
export function argmax(x: Tensor, dim: number): Tensor {
  return withGradMode(false, () => applySingle(operation, [x], integer(dim, 'argmax dim')))
}
