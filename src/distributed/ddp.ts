/**
 * Data-parallel training: every rank holds the whole module and a part of the batch, and gradients are averaged.
 *
 * The module's parameters and buffers are those of rank 0 from the start, and stay equal because every rank applies
 * equal gradients. Statistics of batch norm layers are another matter: see SyncBatchNorm.
 */
import { gradMode, reachableLeaves } from '../autograd.ts'
import { capturePhase } from '../capture-phase.ts'
import { toDevice } from '../device.ts'
import { SyncBatchNorm } from '../nn/sync-batch-norm.ts'
import { argumentError, DeviceError, makeError } from '../errors.ts'
import { native } from '../native.ts'
import { Module } from '../nn/module.ts'
import { nativeOf, type Tensor } from '../tensor.ts'
import type { Device } from '../types.ts'
import { GradientReducer } from './gradient-reducer.ts'
import { defaultGroup, nativeGroup, type ProcessGroup } from './process-group.ts'

const BYTES_PER_MEBIBYTE = 1024 * 1024

/** Options of `DistributedDataParallel`. */
export interface DistributedDataParallelOptions {
  /** Default: the default group. */
  processGroup?: ProcessGroup
  /**
   * The one device of this process, as a string or, of a GPU, its index: where the parameters are. Inputs are moved
   * there. Default: inputs stay where they are.
   */
  deviceIds?: [Device | number]
  /** Where the output is moved to. Default: it stays where it is. */
  outputDevice?: Device | number
  /** Size of a gradient bucket in MiB; default 25. Smaller buckets start their exchange earlier. */
  bucketCapMb?: number
  /**
   * Default true: buffers are copied from the group's first rank before every forward in training, except those that
   * a SyncBatchNorm over the same group keeps equal by itself.
   */
  broadcastBuffers?: boolean
  /**
   * Default false. True: parameters may be missing from a forward's graph, on some ranks or on all; a parameter that
   * no rank used keeps its gradient. Costs a walk through the graph and a small exchange per backward. The output of
   * every rank must depend on at least one parameter; in a module with SyncBatchNorm layers over the same group, the
   * ranks must leave out the same parameters.
   */
  findUnusedParameters?: boolean
  /** Default true: parameters and buffers are copied from the group's first rank here. */
  initSync?: boolean
}

/**
 * Wraps a module for training on several ranks: after `backward`, every parameter's gradient is the mean over the
 * ranks of the group. State-dict keys get the prefix `module.`, as in PyTorch.
 *
 * A gradient is summed in float32 (float64 for float64) and divided once, whatever its own precision; in a group of
 * backend tcp in rank order, in one of backend nccl in NCCL's. Every rank gets the same bits. Forward and backward are
 * collective when gradients are enabled: every rank of the group makes the same calls.
 * Under `noGrad`, and for the buffers also in `eval()`, nothing is exchanged. Several forward calls may come before
 * one backward. `grad()` computes gradients without averaging them.
 */
export class DistributedDataParallel<M extends Module = Module> extends Module {
  readonly module: M
  readonly #group: ProcessGroup
  readonly #reducer: GradientReducer
  readonly #broadcastBuffers: boolean
  readonly #inputDevice: Device | null
  readonly #outputDevice: Device | null

  /**
   * Collective: every rank of the group constructs it, around modules of equal parameters.
   *
   * @throws ArgumentError when no parameter requires a gradient, or several devices are given; DeviceError when the
   *   parameters of any rank are not on one device, or on another than `deviceIds` or its group's; DistributedError
   *   ERR_NOT_INITIALIZED, ERR_NOT_IN_GROUP; MismatchError ERR_PARAMETER_MISMATCH, which names the first parameter
   *   whose name, shape or dtype is not the same on all ranks
   */
  constructor(module: M, options: DistributedDataParallelOptions = {}) {
    super()
    const { bucketCapMb = 25, broadcastBuffers = true, findUnusedParameters = false, initSync = true } = options
    if (!(Number.isFinite(bucketCapMb) && bucketCapMb > 0)) {
      throw argumentError(`bucketCapMb must be a positive number, got ${String(bucketCapMb)}`)
    }
    const trainable = trainableParameters(module)
    const group = nativeGroup(options.processGroup)
    const devices = chooseDevices(options, trainable)
    const [names, parameters] = [[...trainable.keys()], [...trainable.values()].map(nativeOf)]
    const others = [...module.parameters(), ...module.buffers()].map(nativeOf)
    // What is wrong on this rank alone the others must learn, who would wait for it.
    const problem = devices instanceof Error ? devices : null
    try {
      native.verifyParameters(group, names, parameters, others, problem?.message ?? null)
    } finally {
      if (problem) throw problem
    }
    const { input, output } = devices as Devices
    this.#inputDevice = input
    this.#outputDevice = output
    this.module = module
    this.#group = options.processGroup ?? (defaultGroup() as ProcessGroup)
    this.#broadcastBuffers = broadcastBuffers
    if (initSync) this.#broadcast([...module.parameters(), ...module.buffers()])
    const bucketBytes = Math.max(1, Math.floor(bucketCapMb * BYTES_PER_MEBIBYTE))
    this.#reducer = new GradientReducer(group, trainable, bucketBytes, findUnusedParameters)
  }

  /**
   * The wrapped module's output.
   *
   * @throws what the module throws; a DistributedError when the buffers cannot be exchanged; DeviceError (ERR_CAPTURE) for
   *   `findUnusedParameters` in `cuda.capture`, whose exchange needs the host
   */
  override forward(...inputs: Tensor[]): Tensor {
    const synchronized = gradMode.enabled && this.#reducer.enabled
    if (synchronized && this.#reducer.needsReachable) refuseInCapture()
    if (synchronized && this.training && this.#broadcastBuffers) this.#broadcast(this.#buffersToBroadcast())
    const result = this.module.call(...inputs.map((input) => moved(input, this.#inputDevice)))
    const output = moved(result, this.#outputDevice)
    if (synchronized) this.#reducer.expectBackward(this.#reducer.needsReachable ? reachableLeaves([output]) : [])
    return output
  }

  /**
   * Runs `fn` without averaging: gradients of forward and backward calls made inside stay local and accumulate, and
   * are averaged by the next backward outside. SyncBatchNorm still exchanges its statistics.
   *
   * @returns what `fn` returns; when that is a promise, averaging stays off until it is settled
   */
  noSync<T>(fn: () => T): T {
    const before = this.#reducer.enabled
    this.#reducer.enabled = false
    const restore = (): void => {
      this.#reducer.enabled = before
    }
    let result: T
    try {
      result = fn()
    } catch (error) {
      restore()
      throw error
    }
    if (result instanceof Promise) return result.finally(restore) as T
    restore()
    return result
  }

  #buffersToBroadcast(): Tensor[] {
    const equal = new Set<Tensor>()
    for (const module of this.module.modules()) {
      if (!(module instanceof SyncBatchNorm) || !this.#synchronizes(module)) continue
      for (const buffer of module.buffers()) equal.add(buffer)
    }
    return [...this.module.buffers()].filter((buffer) => !equal.has(buffer))
  }

  /** Whether the layer itself keeps its buffers equal on all ranks of our group. */
  #synchronizes(layer: SyncBatchNorm): boolean {
    return layer.training && (layer.processGroup ?? defaultGroup()) === this.#group
  }

  #broadcast(tensors: readonly Tensor[]): void {
    if (tensors.length === 0) return
    native.broadcastTensors(nativeGroup(this.#group), tensors.map(nativeOf), this.#group.ranks[0] as number)
  }
}

interface Devices {
  readonly input: Device | null
  readonly output: Device | null
}

/** Where inputs and outputs are moved to; or why that cannot be. */
function chooseDevices(
  { deviceIds, outputDevice }: DistributedDataParallelOptions,
  trainable: ReadonlyMap<string, Tensor>,
): Devices | Error {
  try {
    const input = chooseInputDevice(deviceIds ?? [], trainable)
    return { input, output: outputDevice === undefined ? null : parseDevice(outputDevice) }
  } catch (error) {
    return error as Error
  }
}

function trainableParameters(module: Module): Map<string, Tensor> {
  const trainable = new Map([...module.namedParameters()].filter(([, parameter]) => parameter.requiresGrad))
  if (trainable.size > 0) return trainable
  throw argumentError('DistributedDataParallel needs a module with at least one parameter that requires a gradient')
}

/** The device of `deviceIds`, which the parameters are on; null without one. */
function chooseInputDevice(
  deviceIds: ReadonlyArray<Device | number>,
  parameters: ReadonlyMap<string, Tensor>,
): Device | null {
  if (deviceIds.length > 1) {
    throw argumentError(
      `DistributedDataParallel drives one device per process, got ${deviceIds.length}; start one process per device`,
    )
  }
  const [first] = deviceIds
  if (first === undefined) return null
  const name = typeof first === 'number' ? `cuda:${first}` : first
  for (const [key, { device }] of parameters) {
    if (device === name) continue
    const message = `DistributedDataParallel: expected parameters on the device of deviceIds, '${name}', got '${key}' on '${device}'`
    throw new DeviceError('ERR_DEVICE', message)
  }
  return parseDevice(first)
}

function parseDevice(device: Device | number): Device {
  return toDevice(typeof device === 'number' ? `cuda:${device}` : device, 'DistributedDataParallel')
}

function moved(tensor: Tensor, device: Device | null): Tensor {
  return device === null || tensor.device === device ? tensor : tensor.to(device)
}

function refuseInCapture(): void {
  if (capturePhase() === 'none') return
  const message =
    'DistributedDataParallel: findUnusedParameters exchanges through the host, which cuda.capture cannot replay'
  throw makeError('ERR_CAPTURE', message)
}
