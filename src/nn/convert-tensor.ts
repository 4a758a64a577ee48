/** Conversion of a leaf in place: the object stays, its memory is exchanged. */
import { gradientOf } from '../autograd/leaf.ts'
import { isFloating } from '../device.ts'
import type { Conversion } from '../device.ts'
import { Handle } from '../handle.ts'
import { native } from '../native.ts'
import { handleOf, stateOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { DType, MemoryFormat } from '../types.ts'

/** The number of dimensions that a memory format is for. */
const DIMENSIONS: Partial<Record<MemoryFormat, number>> = { channelsLast: 4, channelsLast3d: 5 }

/** Converts `tensor` and its gradient as far as they can be; graphs that saved the old memory keep it. */
export function convertInPlace(tensor: Tensor, conversion: Conversion): void {
  const { dtype: currentDType, shape, memoryFormat: currentFormat } = tensor
  const dtype: DType = isFloating(currentDType) ? (conversion.dtype ?? currentDType) : currentDType
  const format = conversion.memoryFormat
  const fits = format !== null && (DIMENSIONS[format] ?? shape.length) === shape.length
  const memoryFormat = fits ? format : currentFormat
  if (dtype === currentDType && memoryFormat === currentFormat) return
  exchange(tensor, dtype, memoryFormat)
  const gradient = gradientOf(tensor)
  if (gradient) exchange(gradient, dtype, memoryFormat)
}

function exchange(tensor: Tensor, dtype: DType, memoryFormat: MemoryFormat): void {
  const old = handleOf(tensor)
  stateOf(tensor).handle = new Handle(native.tensorTo(old.native, dtype, memoryFormat))
  old.release()
}
