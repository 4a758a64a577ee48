/** Recording a step on a GPU and replaying it: CUDA graphs. */
import { inCapturePhase, capturePhase } from './capture-phase.ts'
import type { HostSide } from './capture-phase.ts'
import { devicesInUse } from './device.ts'
import { argumentError, makeError } from './errors.ts'
import { native } from './native.ts'
import type { BindingGraph } from './native.ts'
import { exempt, refusePromise, runScope, tensorsIn } from './scope.ts'
import type { Device } from './types.ts'

/** Runs before recording: PyTorch's number. The first fill caches and make optimizer state, gradients and buckets. */
const WARM_UP_RUNS = 3

/** A recorded step. */
export interface CapturedStep<T> extends Disposable {
  /**
   * Enqueues the recorded work once more, on what the tensors it used hold now. Returns at once.
   *
   * @throws ArgumentError (ERR_DISPOSED) after `dispose`; DeviceError (ERR_CUDA), ERR_CAPTURE inside another capture;
   *   DistributedError (ERR_ABORTED) once a group whose collectives it holds was destroyed, and the group's own error once
   *   that has failed
   */
  replay(): void
  /** What the function returned. Its tensors stay, and each replay writes them anew. */
  readonly outputs: T
  /** Gives the recording and its memory back; the tensors in `outputs` keep the values they have. */
  dispose(): void
}

class Recording<T> implements CapturedStep<T> {
  readonly outputs: T
  readonly #graph: BindingGraph
  readonly #onReplay: readonly (() => void)[]

  constructor(outputs: T, graph: BindingGraph, onReplay: readonly (() => void)[]) {
    this.outputs = outputs
    this.#graph = graph
    this.#onReplay = onReplay
  }

  replay(): void {
    native.graphReplay(this.#graph)
    for (const callback of this.#onReplay) callback()
  }

  dispose(): void {
    native.graphDispose(this.#graph)
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

/** See `cuda.capture`. */
export function capture<T>(fn: () => T, device: Device, warmup = WARM_UP_RUNS): CapturedStep<T> {
  if (typeof fn !== 'function') throw argumentError(`cuda.capture: expected a function, got ${typeof fn}`)
  if (!(Number.isSafeInteger(warmup) && warmup >= 0)) {
    throw argumentError(`cuda.capture: expected warmup to be a whole number of at least 0, got ${String(warmup)}`)
  }
  if (capturePhase() !== 'none') {
    throw makeError('ERR_CAPTURE', 'cuda.capture: expected no capture inside another, got one in its function')
  }
  for (let run = 0; run < warmup; run += 1) warmUp(fn)
  const recording = runScope(() => inCapturePhase('recording', (hostSide) => record(fn, device, hostSide)))
  for (const tensor of tensorsIn(recording.outputs)) exempt(tensor)
  return new Recording(recording.outputs, recording.graph, recording.hostSide.onReplay)
}

/** Everything made inside is released, what is returned included. */
function warmUp(fn: () => unknown): void {
  runScope(() => {
    inCapturePhase('warmup', () => refusePromise(fn(), 'cuda.capture'))
  })
}

interface Recorded<T> {
  readonly outputs: T
  readonly graph: BindingGraph
  readonly hostSide: HostSide
}

function record<T>(fn: () => T, device: Device, hostSide: HostSide): Recorded<T> {
  const others = launchesElsewhere(device)
  native.captureStart(device)
  try {
    const outputs = runOnce(fn, device, others)
    return { outputs, graph: native.captureFinish(device), hostSide }
  } catch (error) {
    for (const callback of hostSide.onAbandon) callback()
    throw error
  }
}

function runOnce<T>(fn: () => T, device: Device, others: ReadonlyMap<Device, number>): T {
  try {
    const outputs = refusePromise(fn(), 'cuda.capture')
    checkElsewhere(others, device)
    return outputs
  } catch (error) {
    native.captureAbandon(device)
    throw error
  }
}

/** Kernels that ran so far on every other GPU in use. */
function launchesElsewhere(device: Device): Map<Device, number> {
  const others = devicesInUse().filter((other) => other !== 'cpu' && other !== device)
  return new Map(others.map((other) => [other, native.cudaCounts(other).launches]))
}

/** Work of another GPU was done once instead of being recorded: a replay would silently leave it out. */
function checkElsewhere(before: ReadonlyMap<Device, number>, device: Device): void {
  for (const [other, launches] of launchesElsewhere(device)) {
    if (launches === (before.get(other) ?? 0)) continue
    const message = `cuda.capture: expected work on ${device} alone, got some on ${other}; see cuda.setDevice`
    throw makeError('ERR_CAPTURE', message)
  }
}
