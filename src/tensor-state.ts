/** What a Tensor object knows of itself; for the modules of this library that tensors are made and tracked by. */
import { dropNode, retainNode } from './autograd/node.ts'
import type { Edge, Node } from './autograd/node.ts'
import type { Handle } from './handle.ts'
import type { Tensor } from './tensor.ts'

export class TensorState {
  /** Null once disposed. */
  handle: Handle | null
  /** Where the tensor came from in the gradient graph; null for leaves. */
  history: Edge | null = null
  /** Of leaves; a tensor with a history always requires a gradient. */
  requiresGrad = false
  grad: Tensor | null = null
  /** Whether a caller has seen `grad`: then it is theirs too, and not disposed when it is replaced. */
  gradExposed = false
  /** The node that adds to `grad`; made when it is first needed. */
  accumulator: Node | null = null
  /** Called after a backward pass has added to `grad`. */
  gradHooks: Set<(leaf: Tensor) => void> | null = null
  /** A parameter registers itself in the module that it is a field of. */
  isParameter = false
  /** Scopes leave it alone. */
  exempt = false

  constructor(handle: Handle, history: Edge | null = null) {
    this.handle = handle
    this.setHistory(history)
  }

  /** Moves the tensor to another place in the graph; a place that nothing holds any more is freed. */
  setHistory(history: Edge | null): void {
    const before = this.history
    this.history = history
    if (history) retainNode(history.node)
    if (before) dropNode(before.node)
  }
}
