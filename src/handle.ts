/**
 * A counted reference on a native tensor.
 *
 * Tensor objects and what the tape saved share one handle per native tensor, so that disposing a Tensor does not take
 * the memory away from a backward that still needs it. At zero references the native reference is dropped at once;
 * a handle that is merely forgotten is dropped by its finalizer later.
 */
import { forgetReleasedOwners } from './foreign-memory.ts'
import { native } from './native.ts'
import type { BindingTensor } from './native.ts'
import type { Device, DType, MemoryFormat, Shape } from './types.ts'

/** The facts of a native tensor that never change. */
export interface TensorInfo {
  readonly shape: Shape
  readonly dtype: DType
  readonly device: Device
  readonly memoryFormat: MemoryFormat
  readonly numel: number
}

export class Handle {
  readonly native: BindingTensor
  /** Whether another native tensor may use the same storage: then its memory must not be taken over. */
  sharesStorage = false
  #references = 1
  #info: TensorInfo | null = null

  constructor(tensor: BindingTensor) {
    this.native = tensor
  }

  get info(): TensorInfo {
    this.#info ??= Object.freeze(native.tensorInfo(this.native)) as TensorInfo
    return this.#info
  }

  /** Whether one reference is all there is to the storage, so that its holder may write to it. */
  get exclusive(): boolean {
    return this.#references === 1 && !this.sharesStorage
  }

  retain(): this {
    this.#references += 1
    return this
  }

  release(): void {
    this.#references -= 1
    if (this.#references > 0) return
    native.tensorDispose(this.native)
    forgetReleasedOwners()
  }
}
