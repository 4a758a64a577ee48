/** Parameters: tensors that are trained. */
import { checkFloating } from '../device.ts'
import { exempt } from '../scope.ts'
import { share, stateOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'

/**
 * A leaf on the storage of `data` that requires a gradient and registers itself in the module that it is a field of.
 * Scopes never dispose it.
 *
 * @throws DTypeError for integers
 */
export function parameter(data: Tensor): Tensor {
  checkFloating(data.dtype, 'parameter')
  return markParameter(share(data, null))
}

/** Makes the leaf `tensor` a parameter. */
export function markParameter(tensor: Tensor): Tensor {
  tensor.requiresGrad = true
  stateOf(tensor).isParameter = true
  return exempt(tensor)
}
