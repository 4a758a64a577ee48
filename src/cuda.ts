/** CUDA, as far as this build has it: it says that there is none. */
import { cudaUnavailable } from './device.ts'
import type { Device } from './types.ts'

function unavailable(operation: string): never {
  throw cudaUnavailable(operation, 'CUDA')
}

/** CUDA devices. This build computes on the CPU: `isAvailable` is false, what needs a device throws a DeviceError. */
export const cuda = {
  /** Whether this build and this machine can compute on a GPU: false in this build. */
  isAvailable(): boolean {
    return false
  },
  /** Number of usable GPUs: 0 in this build. */
  deviceCount(): number {
    return 0
  },
  /** @throws DeviceError (ERR_BACKEND_UNAVAILABLE) */
  setDevice(_index: number): void {
    unavailable('cuda.setDevice')
  },
  /** @throws DeviceError (ERR_BACKEND_UNAVAILABLE) */
  currentDevice(): number {
    return unavailable('cuda.currentDevice')
  },
  /** @throws (rejects) DeviceError (ERR_BACKEND_UNAVAILABLE) */
  async synchronize(_device?: Device): Promise<void> {
    unavailable('cuda.synchronize')
  },
  /** @throws DeviceError (ERR_BACKEND_UNAVAILABLE) */
  memoryStats(_device?: Device): { allocatedBytes: number; reservedBytes: number; peakBytes: number } {
    return unavailable('cuda.memoryStats')
  },
  /** @throws DeviceError (ERR_BACKEND_UNAVAILABLE) */
  capture<T>(_fn: () => T, _options?: { warmup?: number }): { replay(): void; outputs: T } {
    return unavailable('cuda.capture')
  },
}
