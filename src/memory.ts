/** Counts of live memory. */
import { native } from './native.ts'
import type { Device } from './types.ts'

/**
 * Live tensors (storages, however many tensors share one), their bytes, and the bytes held from the system, per device.
 * This build has one device, 'cpu'.
 */
export function memory(): Record<Device, { tensors: number; bytes: number; reservedBytes: number }> {
  const { tensors, bytes, reservedBytes } = native.memoryStats()
  return { cpu: { tensors, bytes, reservedBytes } }
}
