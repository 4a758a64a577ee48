/** Device strings, and what `to(...)` was asked for. */
import { argumentError, DTypeError, DeviceError } from './errors.ts'
import { native } from './native.ts'
import type { ConversionTarget, Device, DType, MemoryFormat } from './types.ts'

const DTYPES: ReadonlySet<string> = new Set<DType>(['float32', 'float64', 'float16', 'bfloat16', 'int32', 'int64'])
const FLOATING: ReadonlySet<string> = new Set<DType>(['float32', 'float64', 'float16', 'bfloat16'])
const CUDA = /^cuda:(0|[1-9]\d*)$/

/** GPUs that were asked for and are there; neither their number nor the driver changes while a process runs. */
const known = new Set<Device>()

/**
 * `device`, by default the CPU, if it can be computed on: asked before anything is done for a call.
 *
 * @throws DeviceError: ERR_DEVICE for another string and for an index without a GPU; ERR_BACKEND_UNAVAILABLE, with the
 *   reason, for a GPU where no driver can be used
 */
export function toDevice(device: Device | undefined, operation: string): Device {
  if (device === undefined || device === 'cpu') return 'cpu'
  if (known.has(device)) return device
  const index = cudaIndex(device)
  if (index === null) {
    const message = `${operation}: expected device 'cpu' or 'cuda:N', got ${JSON.stringify(device)}`
    throw new DeviceError('ERR_DEVICE', message)
  }
  requireCuda(index, operation)
  known.add(device)
  return device
}

/** N of 'cuda:N'; null for any other value. */
export function cudaIndex(device: unknown): number | null {
  const match = typeof device === 'string' ? CUDA.exec(device) : null
  return match ? Number(match[1]) : null
}

/** Throws unless there is a GPU of this index that can be used. */
export function requireCuda(index: number, operation: string): void {
  const reason = native.cudaUnavailableReason()
  if (reason !== null) {
    throw new DeviceError('ERR_BACKEND_UNAVAILABLE', `${operation}: CUDA cannot be used here: ${reason}`)
  }
  const count = native.cudaDeviceCount()
  if (Number.isSafeInteger(index) && index >= 0 && index < count) return
  const indices = count === 1 ? '0, the only one' : `0 to ${count - 1}`
  throw new DeviceError('ERR_DEVICE', `${operation}: expected the index of a GPU, ${indices}, got ${String(index)}`)
}

/** The CPU and the GPUs that this thread has asked for. */
export function devicesInUse(): Device[] {
  return ['cpu', ...known]
}

/** Whether values of this type can have gradients. */
export function isFloating(dtype: DType): boolean {
  return FLOATING.has(dtype)
}

/** Whether values of this type have 16 bits. */
export function isHalf(dtype: DType): boolean {
  return dtype === 'float16' || dtype === 'bfloat16'
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
  readonly device: Device | null
}

/** Reads the argument of `to`. Throws as `toDevice`. */
export function parseConversion(target: ConversionTarget, operation: string): Conversion {
  if (typeof target === 'string') {
    if (DTYPES.has(target)) return { dtype: target as DType, memoryFormat: null, device: null }
    return { dtype: null, memoryFormat: null, device: toDevice(target as Device, operation) }
  }
  if (typeof target !== 'object' || target === null) {
    throw argumentError(`${operation}: expected a device, a dtype or an object of them, got ${String(target)}`)
  }
  const { device, dtype, memoryFormat } = target
  return {
    dtype: dtype ?? null,
    memoryFormat: memoryFormat ?? null,
    device: device === undefined ? null : toDevice(device, operation),
  }
}
