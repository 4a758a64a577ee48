/** CUDA: the devices of this process, their memory, and recording. */
import { capture } from './cuda-capture.ts'
import type { CapturedStep } from './cuda-capture.ts'
import { cudaIndex, requireCuda, toDevice } from './device.ts'
import { DeviceError } from './errors.ts'
import { native } from './native.ts'
import type { Device } from './types.ts'

export type { CapturedStep } from './cuda-capture.ts'

/** Of this thread. */
let currentIndex = 0

/** `device`, by default the current one, if it is a GPU that can be used. */
function toCuda(device: Device | undefined, operation: string): Device {
  if (device === undefined) return toDevice(`cuda:${currentIndex}`, operation)
  if (cudaIndex(device) !== null) return toDevice(device, operation)
  throw new DeviceError('ERR_DEVICE', `${operation}: expected device 'cuda:N', got ${JSON.stringify(device)}`)
}

/**
 * CUDA devices. Without a driver that can be used, `isAvailable` is false and `deviceCount` is 0; everything else throws
 * a DeviceError, ERR_BACKEND_UNAVAILABLE, that says why.
 */
export const cuda = {
  /** Whether there is a GPU that can be computed on. */
  isAvailable(): boolean {
    return native.cudaDeviceCount() > 0
  },

  /** Number of GPUs that can be computed on. */
  deviceCount(): number {
    return native.cudaDeviceCount()
  },

  /**
   * Makes GPU `index` the one that the other functions here mean when they are not told which. Tensors are made where
   * their `device` option says, whichever this is.
   *
   * @throws DeviceError: ERR_DEVICE for an index without a GPU
   */
  setDevice(index: number): void {
    requireCuda(index, 'cuda.setDevice')
    currentIndex = index
  },

  /** The index of the GPU last given to `setDevice` in this thread; 0 at first. */
  currentDevice(): number {
    requireCuda(currentIndex, 'cuda.currentDevice')
    return currentIndex
  },

  /**
   * Resolves when everything enqueued on the device so far is done; the event loop goes on meanwhile.
   *
   * @param device default: the current device
   * @throws (rejects) what kernels have reported since the last wait: ShapeError (ERR_TOO_FEW_VALUES), ArgumentError;
   *   the error of a collective; DeviceError (ERR_CAPTURE) inside a capture
   */
  async synchronize(device?: Device): Promise<void> {
    await native.cudaSynchronize(toCuda(device, 'cuda.synchronize'))
  },

  /**
   * Memory of a device in this process: bytes in live tensors, bytes taken from the driver (freed ones are kept for the
   * next tensors), and the most that live tensors have taken.
   *
   * @param device default: the current device
   */
  memoryStats(device?: Device): { allocatedBytes: number; reservedBytes: number; peakBytes: number } {
    const { bytes, reservedBytes, peakBytes } = native.memoryStats(toCuda(device, 'cuda.memoryStats'))
    return { allocatedBytes: bytes, reservedBytes, peakBytes }
  },

  /**
   * Records what `fn` does on the current device; `replay()` then does it again without JavaScript, on the new contents
   * of the tensors that `fn` used. Copy the next batch into them with `copy_`.
   *
   * First `fn` runs `warmup` times as usual: a training step takes that many real steps. Then it runs once more to be
   * recorded, which computes nothing. Everything `fn` does in JavaScript stays as it was then: branches, shapes, and
   * numbers such as a learning rate. The recording keeps the memory of every tensor that it uses, disposed or not; what
   * takes a tensor to other memory, such as `Module.to`, leaves the recording with the old. Replays do not bump versions:
   * do not call backward, outside, on graphs that saved tensors which the recording writes.
   *
   * A recording that holds collectives is replayed by every rank of their group, in the order of its other calls, and ends
   * with the group. Other threads that use the device wait while this one records.
   *
   * Gradients that the recorded backward makes first live in the recording's memory, and every replay writes them anew. Call
   * `zeroGrad` inside `fn`; without it each replay adds to gradients that were there before.
   *
   * @param options `warmup`: default 3. AdamW and SGD with momentum need at least 1, unless the state is there already.
   * @throws DeviceError: ERR_CAPTURE for a capture inside another and for what a replay could not repeat: reading values
   *   (`item`, `data`), tensors from JavaScript's numbers, random tensors, exchanges over TCP, findUnusedParameters, work
   *   on another GPU. Whatever `fn` throws ends the recording and is thrown on; gradients that it made are set to null.
   *   ArgumentError if `fn` returns a promise.
   */
  capture<T>(fn: () => T, options: { warmup?: number } = {}): CapturedStep<T> {
    return capture(fn, toCuda(undefined, 'cuda.capture'), options.warmup)
  },
}
