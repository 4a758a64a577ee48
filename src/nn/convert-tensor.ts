/** Conversion of a leaf in place: the object stays, its memory is exchanged. */
import { gradientOf } from '../autograd/leaf.ts'
import { isFloating } from '../device.ts'
import type { Conversion } from '../device.ts'
import { Handle } from '../handle.ts'
import { native } from '../native.ts'
import { handleOf, stateOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Device, DType, MemoryFormat } from '../types.ts'

/** The number of dimensions that a memory format is for. */
const DIMENSIONS: Partial<Record<MemoryFormat, number>> = { channelsLast: 4, channelsLast3d: 5 }

/** Converts `tensor` and its gradient as far as they can be; graphs that saved the old memory keep it. */
export function convertInPlace(tensor: Tensor, conversion: Conversion): void {
  const { device: currentDevice, dtype: currentDType, shape, memoryFormat: currentFormat } = tensor
  const dtype: DType = isFloating(currentDType) ? (conversion.dtype ?? currentDType) : currentDType
  const format = conversion.memoryFormat
  const fits = format !== null && (DIMENSIONS[format] ?? shape.length) === shape.length
  const memoryFormat = fits ? format : currentFormat
  const device = conversion.device ?? currentDevice
  if (dtype === currentDType && memoryFormat === currentFormat && device === currentDevice) return
  exchange(tensor, { dtype, memoryFormat, device })
  const gradient = gradientOf(tensor)
  if (gradient) exchange(gradient, { dtype, memoryFormat, device })
}

interface Target {
  readonly dtype: DType
  readonly memoryFormat: MemoryFormat
  readonly device: Device
}

function exchange(tensor: Tensor, { dtype, memoryFormat, device }: Target): void {
  const old = handleOf(tensor)
  stateOf(tensor).handle = new Handle(native.tensorTo(old.native, dtype, memoryFormat, device))
  old.release()
}
