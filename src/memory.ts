/** Counts of live memory. */
import { devicesInUse } from './device.ts'
import { native } from './native.ts'
import type { Device } from './types.ts'

/**
 * Live tensors (storages, however many tensors share one), their bytes, and the bytes held from the system or the driver:
 * of the CPU, and of every GPU that this thread has used. On a GPU, saved statistics and buckets count as tensors, too.
 */
export function memory(): Record<Device, { tensors: number; bytes: number; reservedBytes: number }> {
  const counts = devicesInUse().map((device) => {
    const { tensors, bytes, reservedBytes } = native.memoryStats(device)
    return [device, { tensors, bytes, reservedBytes }] as const
  })
  return Object.fromEntries(counts) as ReturnType<typeof memory>
}
