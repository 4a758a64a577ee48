/** What keeps the memory of other CUDA libraries alive: objects held under ids until the native side lets go. */
import { native } from './native.ts'

const owners = new Map<number, object>()

/** Holds `owner` until the native side is done with its memory. @returns its id; 0 if there is none */
export function holdOwner(owner: object | undefined): number {
  forgetReleasedOwners()
  if (owner === undefined) return 0
  const id = native.newOwner()
  owners.set(id, owner)
  return id
}

/** Forgets the owners of memory that no tensor, graph or kernel uses any more. */
export function forgetReleasedOwners(): void {
  if (owners.size === 0) return
  for (const id of native.releasedOwners()) owners.delete(id)
}
