/** A tensor that a node keeps for backward, and the check that nobody changed it since. */
import { AutogradError } from '../errors.ts'
import type { Handle } from '../handle.ts'
import { native } from '../native.ts'
import { track } from '../scope.ts'
import { edgeOf, fromHandle, handleOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { dropNode, retainNode } from './node.ts'
import type { Edge } from './node.ts'

export class SavedTensor {
  readonly #handle: Handle
  readonly #version: number
  readonly #history: Edge | null
  /** A node's own output must not hold that node. */
  readonly #holdsHistory: boolean

  /** Takes over one reference of `handle`. */
  constructor(handle: Handle, history: Edge | null, holdsHistory = true) {
    this.#handle = handle
    this.#version = native.tensorVersion(handle.native)
    this.#history = history
    this.#holdsHistory = holdsHistory
    if (history && holdsHistory) retainNode(history.node)
  }

  /** Keeps `tensor` with its place in the graph. */
  static of(tensor: Tensor): SavedTensor {
    return new SavedTensor(handleOf(tensor).retain(), edgeOf(tensor))
  }

  /** Keeps an output for the node that made it. */
  static ofOutput(tensor: Tensor, history: Edge): SavedTensor {
    return new SavedTensor(handleOf(tensor).retain(), history, false)
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
    if (this.#history && this.#holdsHistory) dropNode(this.#history.node)
  }
}
