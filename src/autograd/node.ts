/**
 * A node of the gradient graph: one recorded operation, or the end of the way at a leaf.
 *
 * Nodes hold handles of what they saved, never the Tensor objects of intermediate results, so that disposing those
 * neither breaks nor prolongs the graph.
 */
import type { Device, DType, MemoryFormat, Shape } from '../types.ts'
import type { Tensor } from '../tensor.ts'

/** One output of a node: where a gradient goes. */
export interface Edge {
  readonly node: Node
  readonly index: number
}

/** What a gradient of an output must look like. */
export interface OutputInfo {
  readonly shape: Shape
  readonly dtype: DType
  readonly memoryFormat: MemoryFormat
  readonly device: Device
}

/** A gradient for each output or input; null where there is none. */
export type Gradients = readonly (Tensor | null)[]

export interface Node {
  /** The operation's name, for messages. */
  readonly name: string
  /** Later operations have higher numbers; backward runs them first. */
  readonly sequence: number
  /** Where the gradient of each input goes; null where none is needed. */
  readonly edges: readonly (Edge | null)[]
  readonly outputs: readonly OutputInfo[]
  /** The gradients of the inputs; `needs` says which of them are asked for. */
  apply(gradients: Gradients, needs: readonly boolean[]): Gradients
  /** Frees what was saved; `apply` then throws ERR_GRAPH_FREED. */
  release(): void
  /** Holders: tensors that it made, nodes that lead to it, running passes. Null for nodes that are never counted. */
  holders: number | null
}

/** Counts one more holder of the node. */
export function retainNode(node: Node): void {
  if (node.holders !== null) node.holders += 1
}

/**
 * Counts one holder less. A node without holders can no longer be reached by a backward: it frees what it saved and lets
 * go of the nodes before it, so that scopes free graphs that never see a backward. Iterative, for long chains.
 */
export function dropNode(node: Node): void {
  const pending = [node]
  for (let next = pending.pop(); next; next = pending.pop()) {
    if (next.holders === null) continue
    next.holders -= 1
    if (next.holders > 0) continue
    next.release()
    for (const edge of next.edges) if (edge) pending.push(edge.node)
  }
}

let lastSequence = 0

/** The number of the next operation. */
export function nextSequence(): number {
  lastSequence += 1
  return lastSequence
}
