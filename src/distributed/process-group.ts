/**
 * Process groups: who takes part in collectives. Names and rules are torch.distributed's.
 *
 * A group belongs to the JavaScript environment (main thread or worker) that made it; the state of this module is
 * that environment's default group. The native side holds the connections and ends them with the environment.
 */
import { debuglog } from 'node:util'

import { toDevice } from '../device.ts'
import { argumentError, DeviceError, DistributedError } from '../errors.ts'
import { type BindingGroup, native } from '../native.ts'
import type { Device } from '../types.ts'

/** Milliseconds that a wait of a group lasts when the user does not say: five minutes. */
const DEFAULT_TIMEOUT = 300_000

/** A set of ranks that communicate. Made by `initProcessGroup`, `newGroup` and `newSubgroups`. */
export interface ProcessGroup {
  /** This process's place in the group; −1 on a rank that is not a member: using such a group throws ERR_NOT_IN_GROUP. */
  readonly rank: number
  /** How many ranks the group has. */
  readonly size: number
  /** The members' ranks in the default group, in the order of their ranks in this one. */
  readonly ranks: readonly number[]
  /** How tensors on GPUs are exchanged; those on the CPU always go over TCP. */
  readonly backend: 'tcp' | 'nccl'
  /** Milliseconds after which a wait for other ranks ends with a TimeoutError. */
  readonly timeout: number
}

/** Options of `initProcessGroup`. */
export interface InitProcessGroupOptions {
  /**
   * Default: 'nccl' where every rank has a GPU of its own and NCCL, else 'tcp'; with NODE_DEBUG=syncbn in the environment,
   * which and why is written to stderr.
   */
  backend?: 'tcp' | 'nccl'
  /**
   * Where the ranks meet: 'env://' (default: MASTER_ADDR and MASTER_PORT), 'tcp://host:port' (rank 0 listens there),
   * or 'file:///path' (a file that all ranks can write, fresh for every job).
   */
  initMethod?: string
  /** Default: RANK, else SLURM_PROCID. */
  rank?: number
  /** Default: WORLD_SIZE, else SLURM_NTASKS. */
  worldSize?: number
  /** Milliseconds that a wait for other ranks may last, in the rendezvous and in every later call; default 300 000. */
  timeout?: number
  /** Secret that every rank proves to know; default SYNCBN_TOKEN. Needed when any rank is not on loopback. */
  token?: string
  /** The device of this rank, and the only GPU whose tensors a group of backend nccl takes. Default for nccl: cuda:LOCAL_RANK. */
  deviceId?: Device
  /** Ends the rendezvous early: the promise then rejects with ERR_ABORTED, whose `cause` is the signal's reason. */
  signal?: AbortSignal
}

/** Silent unless NODE_DEBUG asks for it. */
const debug = debuglog('syncbn')
const handles = new WeakMap<ProcessGroup, BindingGroup>()
let current: ProcessGroup | null = null
let initializing = false

/**
 * Meets the other ranks and makes the default group. Every rank of the job calls it, once.
 *
 * @throws ArgumentError a bad option or a malformed `initMethod`; DeviceError ERR_DEVICE for a device that is not there and
 *   for two ranks on one GPU with nccl, ERR_BACKEND_UNAVAILABLE if nccl is asked for and a rank has no GPU or no NCCL
 *   (naming every path that was tried); MismatchError if ranks ask for different backends; DistributedError ERR_NCCL,
 *   ERR_ALREADY_INITIALIZED, ERR_ENVIRONMENT (a missing variable, by name), ERR_ADDRESS_IN_USE,
 *   ERR_RENDEZVOUS (a rank out of range or taken twice, another world size), ERR_TOKEN_REQUIRED, ERR_TOKEN_REJECTED,
 *   ERR_ABORTED; TimeoutError that names the ranks which did not come
 */
export async function initProcessGroup(options: InitProcessGroupOptions = {}): Promise<ProcessGroup> {
  const { backend } = options
  if (backend !== undefined && backend !== 'tcp' && backend !== 'nccl') {
    throw argumentError(`backend must be 'tcp' or 'nccl', got '${String(backend)}'`)
  }
  if (options.deviceId !== undefined) checkDeviceId(toDevice(options.deviceId, 'initProcessGroup'), backend)
  const timeout = checkTimeout(options.timeout ?? DEFAULT_TIMEOUT)
  if (current !== null || initializing) {
    throw new DistributedError('ERR_ALREADY_INITIALIZED', 'the default process group exists already: destroy it first')
  }
  initializing = true
  try {
    const handle = await connect(options, timeout)
    debug(native.groupInfo(handle).reason)
    current = groupFrom(handle)
    return current
  } finally {
    initializing = false
  }
}

async function connect(options: InitProcessGroupOptions, timeout: number): Promise<BindingGroup> {
  const { signal } = options
  if (signal?.aborted) throw aborted(signal)
  const cancel = new native.BindingCancel()
  const onAbort = (): void => cancel.cancel()
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    return await native.initProcessGroup(
      {
        initMethod: options.initMethod ?? 'env://',
        timeout,
        ...(options.rank !== undefined && { rank: options.rank }),
        ...(options.worldSize !== undefined && { worldSize: options.worldSize }),
        ...(options.token !== undefined && { token: options.token }),
        ...(options.backend !== undefined && { backend: options.backend }),
        ...(options.deviceId !== undefined && { deviceId: options.deviceId }),
      },
      cancel,
    )
  } catch (error) {
    throw signal?.aborted ? aborted(signal) : error
  } finally {
    signal?.removeEventListener('abort', onAbort)
  }
}

function aborted(signal: AbortSignal): DistributedError {
  const error = new DistributedError('ERR_ABORTED', 'initProcessGroup was aborted by its signal')
  error.cause = signal.reason
  return error
}

function checkDeviceId(device: Device, backend: string | undefined): void {
  if (backend !== 'nccl' || device !== 'cpu') return
  throw new DeviceError('ERR_DEVICE', "initProcessGroup: expected deviceId 'cuda:N' with backend 'nccl', got 'cpu'")
}

function checkTimeout(timeout: number): number {
  if (!(Number.isFinite(timeout) && timeout > 0)) {
    throw argumentError(`timeout must be a positive number of milliseconds, got ${String(timeout)}`)
  }
  return timeout
}

/**
 * Leaves `group`; without an argument, the default group and with it every other. Later use of the group throws
 * ERR_ABORTED or ERR_NOT_INITIALIZED. On a rank that is not a member there is nothing to leave.
 *
 * @throws DistributedError ERR_NOT_INITIALIZED when there is no default group
 */
export async function destroyProcessGroup(group?: ProcessGroup): Promise<void> {
  const target = group ?? requireDefault()
  if (target.rank === -1) return
  const handle = nativeGroup(target)
  // Forgotten first: whatever the farewell brings, the group cannot be used again.
  if (target === current) current = null
  await native.destroyGroup(handle)
}

/** Whether the default group exists. */
export function isInitialized(): boolean {
  return current !== null
}

/**
 * This process's rank in `group` (default: the default group), −1 if it is not a member.
 *
 * @throws DistributedError ERR_NOT_INITIALIZED when there is no default group
 */
export function getRank(group?: ProcessGroup | null): number {
  return (group ?? requireDefault()).rank
}

/**
 * The number of ranks of `group` (default: the default group).
 *
 * @throws DistributedError ERR_NOT_INITIALIZED when there is no default group
 */
export function getWorldSize(group?: ProcessGroup | null): number {
  return (group ?? requireDefault()).size
}

/** This process's number on its machine: LOCAL_RANK, else SLURM_LOCALID, else 0. */
export function getLocalRank(): number {
  return native.localRank()
}

/** Options of `newGroup`. */
export interface NewGroupOptions {
  /** Milliseconds; default: the default group's. */
  timeout?: number
}

/**
 * Makes a group of some ranks of the default group. Every rank calls it, for every group, in the same order, members
 * or not; a rank that is not a member gets a handle whose `rank` is −1.
 *
 * @param ranks ranks of the default group, each once; a member's new rank is its place when they are sorted
 * @throws ArgumentError ranks out of range, repeated or none; DistributedError ERR_NOT_INITIALIZED;
 *   MismatchError when other ranks asked for another group; TimeoutError
 */
export async function newGroup(ranks: readonly number[], options: NewGroupOptions = {}): Promise<ProcessGroup> {
  const world = requireDefault()
  const timeout = checkTimeout(options.timeout ?? world.timeout)
  return groupFrom(await native.newGroup(nativeGroup(world), [...ranks], timeout))
}

/**
 * Splits the default group into consecutive groups of `size` ranks. Every rank calls it.
 *
 * @returns this rank's own group
 * @throws ArgumentError when the world size is not a multiple of `size`; otherwise as `newGroup`
 */
export async function newSubgroups(size: number): Promise<ProcessGroup> {
  const world = requireDefault()
  if (!(Number.isInteger(size) && size >= 1 && world.size % size === 0)) {
    throw argumentError(`the size of subgroups must divide the world size ${world.size}, got ${String(size)}`)
  }
  let own = world
  for (let first = 0; first < world.size; first += size) {
    const group = await newGroup(Array.from({ length: size }, (_, i) => first + i))
    if (group.rank !== -1) own = group
  }
  return own
}

/** The default group, or null. */
export function defaultGroup(): ProcessGroup | null {
  return current
}

/**
 * The native handle of a group that this process is a member of.
 *
 * @param group null or undefined: the default group
 * @throws DistributedError ERR_NOT_INITIALIZED (no default group), ERR_NOT_IN_GROUP; ArgumentError (no group of ours)
 */
export function nativeGroup(group?: ProcessGroup | null): BindingGroup {
  const target = group ?? requireDefault()
  const handle = handles.get(target)
  if (handle === undefined) {
    throw argumentError('expected a process group from initProcessGroup, newGroup or newSubgroups')
  }
  if (target.rank === -1) {
    throw new DistributedError(
      'ERR_NOT_IN_GROUP',
      `this process is not a member of the group of ranks ${target.ranks.join(', ')}`,
    )
  }
  return handle
}

function requireDefault(): ProcessGroup {
  if (current !== null) return current
  throw new DistributedError('ERR_NOT_INITIALIZED', 'there is no process group yet: await initProcessGroup() first')
}

function groupFrom(handle: BindingGroup): ProcessGroup {
  const { rank, size, ranks, backend, timeout, device } = native.groupInfo(handle)
  // The native side uses the GPU that it chose: from now on it counts as used here, too.
  if (device) toDevice(device as Device, 'initProcessGroup')
  const group: ProcessGroup = Object.freeze({
    rank,
    size,
    ranks: Object.freeze([...ranks]),
    backend: backend as ProcessGroup['backend'],
    timeout,
  })
  handles.set(group, handle)
  return group
}
