/** Conversion to another device, dtype or memory format. */
import { withGradMode } from '../autograd/grad-mode.ts'
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { isFloating } from '../device.ts'
import type { Conversion } from '../device.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'

interface Options extends Conversion {
  /** What the operand was. */
  readonly from: Conversion
}

const operation: Operation<Options> = {
  name: 'to',
  sharesStorage: true,
  forward: (_context, [x], { dtype, memoryFormat, device }) => [
    native.tensorTo(nativeOf(x as Tensor), dtype, memoryFormat, device),
  ],
  backward: (_context, [gradient], { from }) => [convert(gradient as Tensor, from)],
}

/** See `Tensor.to`; null leaves as it is. Integers have no gradient, so a conversion to them is not recorded. */
export function convert(x: Tensor, { dtype, memoryFormat, device }: Conversion): Tensor {
  const from = { dtype: x.dtype, memoryFormat: x.memoryFormat, device: x.device }
  const options = { dtype, memoryFormat, device, from }
  if (isFloating(dtype ?? x.dtype)) return applySingle(operation, [x], options)
  return withGradMode(false, () => applySingle(operation, [x], options))
}
