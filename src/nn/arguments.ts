/** Checks of constructor arguments that modules share. */
import { checkDevice, checkFloating } from '../device.ts'
import { argumentError } from '../errors.ts'
import type { Device, DType } from '../types.ts'

/** Where and as what parameters are made. */
export interface FactoryOptions {
  /** Default: 'cpu'. */
  device?: Device
  /** Default: 'float32'. */
  dtype?: DType
}

/** `value` if it is a positive integer. */
export function positiveInteger(value: number, name: string): number {
  if (Number.isSafeInteger(value) && value > 0) return value
  throw argumentError(`${name}: expected a positive integer, got ${String(value)}`)
}

/** The dtype of the parameters; throws for an unknown device or a dtype that cannot be trained. */
export function factoryDType(options: FactoryOptions, name: string): DType {
  checkDevice(options.device, name)
  const dtype = options.dtype ?? 'float32'
  checkFloating(dtype, name)
  return dtype
}
