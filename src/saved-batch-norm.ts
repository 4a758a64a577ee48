/** What the backward of the functional pair needs: the input, the weight and the native statistics. */
import { SavedTensor } from './autograd/saved-tensor.ts'
import { makeError } from './errors.ts'
import { native } from './native.ts'
import type { BindingArray, BindingSaved } from './native.ts'
import type { Floats } from './batch-norm-operands.ts'

/** What backward needs; disposable; holds the exchange's group. */
export interface SavedBatchNorm extends Disposable {
  /** C means that the forward used, in its accumulation dtype. */
  readonly mean: Float32Array | Float64Array
  /** C values 1 / √(variance + eps) that the forward used. */
  readonly invstd: Float32Array | Float64Array
  /** Values per channel over all ranks. */
  readonly count: number
  /** Gives the memory back; a backward after that is ERR_DISPOSED. */
  dispose(): void
}

/** Operands of a forward over tensors; changes in place before backward are found. */
export interface SavedTensors {
  readonly kind: 'tensor'
  readonly input: SavedTensor
  readonly weight: SavedTensor | null
}

/** Operands of a forward over arrays, which are the caller's. */
export interface SavedArrays {
  readonly kind: 'array'
  readonly input: BindingArray
  readonly weight: Floats | null
}

export class SavedStatistics implements SavedBatchNorm {
  readonly operands: SavedTensors | SavedArrays
  readonly hasBias: boolean
  readonly #native: BindingSaved
  #info: ReturnType<typeof native.savedInfo> | null = null
  #disposed = false

  constructor(saved: BindingSaved, operands: SavedTensors | SavedArrays, hasBias: boolean) {
    this.#native = saved
    this.operands = operands
    this.hasBias = hasBias
  }

  /** The native statistics. Throws ERR_DISPOSED. */
  get native(): BindingSaved {
    if (this.#disposed) throw makeError('ERR_DISPOSED', 'the saved batch norm was disposed')
    return this.#native
  }

  get mean(): Float32Array | Float64Array {
    return this.#read().mean
  }

  get invstd(): Float32Array | Float64Array {
    return this.#read().invstd
  }

  get count(): number {
    return this.#read().count
  }

  #read(): ReturnType<typeof native.savedInfo> {
    this.#info ??= native.savedInfo(this.native)
    return this.#info
  }

  dispose(): void {
    if (this.#disposed) return
    this.#disposed = true
    native.savedDispose(this.#native)
    if (this.operands.kind === 'array') return
    this.operands.input.release()
    this.operands.weight?.release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}
