/** Which process group a synchronized batch norm uses. */
import { defaultGroup, nativeGroup } from './distributed/process-group.ts'
import type { ProcessGroup } from './distributed/process-group.ts'
import { DistributedError } from './errors.ts'
import type { BindingGroup } from './native.ts'

/**
 * The native group to synchronize over; null where there is nobody to exchange with: a group of one rank, or no group in
 * a process that is alone (WORLD_SIZE absent or 1).
 *
 * @param group null: the default group
 * @throws DistributedError ERR_NOT_INITIALIZED without a group where WORLD_SIZE is above 1; ERR_NOT_IN_GROUP
 */
export function syncGroup(group: ProcessGroup | null, operation: string): BindingGroup | null {
  const chosen = group ?? defaultGroup()
  if (chosen === null) return checkAlone(operation)
  const handle = nativeGroup(chosen)
  return chosen.size === 1 ? null : handle
}

function checkAlone(operation: string): null {
  const worldSize = process.env['WORLD_SIZE']
  if (worldSize === undefined || worldSize.trim() === '' || Number(worldSize) === 1) return null
  const message = `${operation}: expected initProcessGroup() to be called before training, because WORLD_SIZE is ${worldSize}`
  throw new DistributedError('ERR_NOT_INITIALIZED', message, { operation })
}
