/** Checks of constructor arguments that modules share. */
import { checkFloating, toDevice } from '../device.ts'
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

/** Where and as what the parameters are made; throws for a device that is not there or a dtype that cannot be trained. */
export function toFactory(options: FactoryOptions, name: string): Required<FactoryOptions> {
  const device = toDevice(options.device, name)
  const dtype = options.dtype ?? 'float32'
  checkFloating(dtype, name)
  return { dtype, device }
}
