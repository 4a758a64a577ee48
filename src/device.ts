/** Device strings, and what `to(...)` was asked for. This build computes on the CPU. */
import { argumentError, DTypeError, DeviceError } from './errors.ts'
import type { ConversionTarget, Device, DType, MemoryFormat } from './types.ts'

const DTYPES: ReadonlySet<string> = new Set<DType>(['float32', 'float64', 'float16', 'bfloat16', 'int32', 'int64'])
const FLOATING: ReadonlySet<string> = new Set<DType>(['float32', 'float64', 'float16', 'bfloat16'])

/** Throws unless `device` is one this build computes on. */
export function checkDevice(device: Device | undefined, operation: string): void {
  if (device === undefined || device === 'cpu') return
  if (typeof device === 'string' && /^cuda(:\d+)?$/.test(device)) throw cudaUnavailable(operation, device)
  throw new DeviceError('ERR_DEVICE', `${operation}: expected device 'cpu', got ${JSON.stringify(device)}`)
}

/** The error of everything that needs a GPU. */
export function cudaUnavailable(operation: string, what: string): DeviceError {
  const message = `${operation}: ${what} is not available: this build computes on the CPU; CUDA comes with the GPU build`
  return new DeviceError('ERR_BACKEND_UNAVAILABLE', message)
}

/** Whether values of this type can have gradients. */
export function isFloating(dtype: DType): boolean {
  return FLOATING.has(dtype)
}

/** Throws unless `dtype` is a type that can have gradients. */
export function checkFloating(dtype: DType, operation: string): void {
  if (!isFloating(dtype)) {
    throw new DTypeError('ERR_DTYPE', `${operation}: expected a floating-point dtype, got ${String(dtype)}`)
  }
}

/** What a tensor is to become; null: as it is. */
export interface Conversion {
  readonly dtype: DType | null
  readonly memoryFormat: MemoryFormat | null
}

/** Reads the argument of `to`. Throws for a device other than the CPU. */
export function parseConversion(target: ConversionTarget, operation: string): Conversion {
  if (typeof target === 'string') {
    if (DTYPES.has(target)) return { dtype: target as DType, memoryFormat: null }
    checkDevice(target as Device, operation)
    return { dtype: null, memoryFormat: null }
  }
  if (typeof target !== 'object' || target === null) {
    throw argumentError(`${operation}: expected a device, a dtype or an object of them, got ${String(target)}`)
  }
  checkDevice(target.device, operation)
  return { dtype: target.dtype ?? null, memoryFormat: target.memoryFormat ?? null }
}
