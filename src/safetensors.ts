/** Checkpoints in the safetensors format. */
import { toDevice } from './device.ts'
import { argumentError } from './errors.ts'
import { native } from './native.ts'
import type { BindingTensor } from './native.ts'
import { describe, nativeOf, wrap } from './tensor.ts'
import type { Tensor } from './tensor.ts'
import type { Device } from './types.ts'

/**
 * Writes tensors, in row-major order, to a file: first to a temporary one, synced, then renamed, so that a crash leaves
 * the old file or the new one. The values are those at the time of the call, which for tensors on a GPU waits
 * for it.
 *
 * @param metadata text by name. Default: none.
 * @throws (rejects) ArgumentError: ERR_FILE if the file cannot be written
 */
export async function saveSafetensors(
  path: string,
  tensors: ReadonlyMap<string, Tensor>,
  metadata?: Record<string, string>,
): Promise<void> {
  if (typeof path !== 'string') throw argumentError(`saveSafetensors: expected a path, got ${describe(path)}`)
  if (!(tensors instanceof Map)) throw argumentError(`saveSafetensors: expected a Map, got ${describe(tensors)}`)
  const handles = [...tensors.values()].map(nativeOf)
  await native.saveSafetensors(path, [...tensors.keys()], handles, metadata ?? null)
}

/**
 * Reads all tensors of a file, by name.
 *
 * @param options `device`: where the tensors are to be. Default: 'cpu'.
 * @throws (rejects) ArgumentError: ERR_FILE if the file cannot be read or is no safetensors file; DeviceError
 */
export async function loadSafetensors(path: string, options: { device?: Device } = {}): Promise<Map<string, Tensor>> {
  if (typeof path !== 'string') throw argumentError(`loadSafetensors: expected a path, got ${describe(path)}`)
  const device = toDevice(options.device, 'loadSafetensors')
  const { names, tensors } = await native.loadSafetensors(path)
  const moved = device === 'cpu' ? tensors : tensors.map((tensor) => moveTo(device, tensor))
  return new Map(names.map((name, i) => [name, wrap(moved[i] as BindingTensor)]))
}

function moveTo(device: Device, tensor: BindingTensor): BindingTensor {
  try {
    return native.tensorTo(tensor, null, null, device)
  } finally {
    native.tensorDispose(tensor)
  }
}
