/** A copy. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'

const operation: Operation<undefined> = {
  name: 'clone',
  forward: (_context, [x]) => [native.tensorClone(nativeOf(x as Tensor))],
  backward: (_context, [gradient]) => [gradient as Tensor],
}

/** See `Tensor.clone`. */
export function clone(x: Tensor): Tensor {
  return applySingle(operation, [x], undefined)
}
