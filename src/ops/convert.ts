/** Conversion to another dtype or memory format. */
import { withGradMode } from '../autograd/grad-mode.ts'
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { isFloating } from '../device.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { DType, MemoryFormat } from '../types.ts'

interface Options {
  readonly dtype: DType | null
  readonly memoryFormat: MemoryFormat | null
  readonly from: { readonly dtype: DType; readonly memoryFormat: MemoryFormat }
}

const operation: Operation<Options> = {
  name: 'to',
  sharesStorage: true,
  forward: (_context, [x], { dtype, memoryFormat }) => [native.tensorTo(nativeOf(x as Tensor), dtype, memoryFormat)],
  backward: (_context, [gradient], { from }) => [convert(gradient as Tensor, from.dtype, from.memoryFormat)],
}

/** See `Tensor.to`; null leaves as it is. Integers have no gradient, so a conversion to them is not recorded. */
export function convert(x: Tensor, dtype: DType | null, memoryFormat: MemoryFormat | null): Tensor {
  const options = { dtype, memoryFormat, from: { dtype: x.dtype, memoryFormat: x.memoryFormat } }
  if (isFloating(dtype ?? x.dtype)) return applySingle(operation, [x], options)
  return withGradMode(false, () => applySingle(operation, [x], options))
}
