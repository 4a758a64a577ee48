/** A tensor that a node keeps for backward, and the check that nobody changed it since. */
import { AutogradError } from '../errors.ts'
import type { Handle } from '../handle.ts'
import { native } from '../native.ts'
import { track } from '../scope.ts'
import { edgeOf, fromHandle, handleOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Edge } from './node.ts'

export class SavedTensor {
  readonly #handle: Handle
  readonly #version: number
  readonly #history: Edge | null

  /** Takes over one reference of `handle`. */
  constructor(handle: Handle, history: Edge | null) {
    this.#handle = handle
    this.#version = native.tensorVersion(handle.native)
    this.#history = history
  }

  /** Keeps `tensor` with its place in the graph. */
  static of(tensor: Tensor): SavedTensor {
    return new SavedTensor(handleOf(tensor).retain(), edgeOf(tensor))
  }

  /** The tensor, in the current scope. Throws ERR_SAVED_TENSOR_MODIFIED if it was written to since it was saved. */
  unpack(operation: string): Tensor {
    const version = native.tensorVersion(this.#handle.native)
    if (version !== this.#version) {
      const { dtype, shape } = this.#handle.info
      const message =
        `backward of '${operation}': a saved tensor (${dtype} [${shape.join(', ')}]) was changed in place: ` +
        `expected version ${this.#version}, got ${version}`
      throw new AutogradError('ERR_SAVED_TENSOR_MODIFIED', message)
    }
    return track(fromHandle(this.#handle.retain(), this.#history))
  }

  release(): void {
    this.#handle.release()
  }
}
