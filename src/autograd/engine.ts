/**
 * The backward pass: nodes run once all gradients of their outputs have arrived, later operations first, so that sums
 * are formed in the same order every time.
 */
import { AutogradError } from '../errors.ts'
import { native } from '../native.ts'
import type { BindingTensor } from '../native.ts'
import { add } from '../ops/arithmetic.ts'
import { runScope, track } from '../scope.ts'
import { edgeOf, handleOf, nativeOf, share, stateOf, wrap } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { withGradMode } from './grad-mode.ts'
import { countDependencies, leadingTo, reachable } from './graph.ts'
import { checkGradientMatches } from './leaf.ts'
import { dropNode, retainNode } from './node.ts'
import type { Edge, Gradients, Node } from './node.ts'
import { ReadyQueue } from './ready-queue.ts'

/** Options of `backward` and `grad`. */
export interface BackwardOptions {
  retainGraph?: boolean
  createGraph?: boolean
}

interface Root {
  readonly edge: Edge
  readonly gradient: Tensor
}

const running: Pass[] = []

/** One backward pass. Gradients on the way are tensors of its own, shared with nobody it does not know of. */
class Pass {
  readonly #pending = new Map<Node, (Tensor | null)[]>()
  readonly #dependencies: Map<Node, number>
  readonly #queue = new ReadyQueue()
  readonly #captures: ReadonlyMap<Node, (Tensor | null)[]>
  /** Null: all nodes. */
  readonly #wanted: ReadonlySet<Node> | null
  readonly #retain: boolean
  readonly callbacks: (() => void)[] = []
  readonly errorCallbacks: (() => void)[] = []

  /** With `captured` edges, only the nodes on the way to them run and no leaf's `grad` changes. */
  constructor(roots: readonly Root[], captured: readonly Edge[] | null, retain: boolean) {
    const nodes = reachable(roots.map((root) => root.edge.node))
    this.#captures = new Map(captured?.map((edge) => [edge.node, []]))
    this.#wanted = captured && leadingTo(nodes, this.#captures.keys())
    this.#dependencies = countDependencies(this.#wanted ?? nodes)
    this.#retain = retain
    for (const { edge, gradient } of roots) if (this.#wants(edge.node)) this.#receive(edge, gradient, 'root')
    for (const node of this.#pending.keys()) if (!this.#dependencies.get(node)) this.#queue.push(node)
  }

  run(): void {
    try {
      for (let node = this.#queue.pop(); node; node = this.#queue.pop()) this.#runNode(node)
      for (const callback of this.callbacks) callback()
    } catch (error) {
      for (const callback of this.errorCallbacks) callback()
      throw error
    } finally {
      for (const slots of this.#pending.values()) slots.forEach(disposeSlot)
    }
  }

  /** The gradient that arrived at a captured edge; the caller owns it. */
  takeCapture(edge: Edge): Tensor | null {
    const gradient = this.#captures.get(edge.node)?.[edge.index] ?? null
    return gradient && track(share(gradient, stateOf(gradient).history))
  }

  releaseCaptures(): void {
    for (const slots of this.#captures.values()) slots.forEach(disposeSlot)
  }

  #wants(node: Node): boolean {
    return this.#wanted === null || this.#wanted.has(node)
  }

  #runNode(node: Node): void {
    const gradients = this.#pending.get(node) ?? []
    this.#pending.delete(node)
    const needs = node.edges.map((edge) => edge !== null && this.#wants(edge.node))
    const captured = this.#captures.get(node)
    const runs = gradients.some((gradient) => gradient) && (captured === undefined || needs.includes(true))
    try {
      runScope(() => this.#deliver(node, runs ? node.apply(gradients, needs) : []))
    } finally {
      if (captured) captured.push(...gradients)
      else gradients.forEach(disposeSlot)
    }
    if (!this.#retain && runs) node.release()
  }

  /** Hands each gradient of `node`'s inputs on; a missing one counts as arrived, too. */
  #deliver(node: Node, results: Gradients): void {
    node.edges.forEach((edge, i) => {
      if (!edge || !this.#wants(edge.node)) return
      const gradient = results[i]
      if (gradient) this.#receive(edge, gradient, `backward of '${node.name}', input ${i}`)
      const left = (this.#dependencies.get(edge.node) ?? 0) - 1
      this.#dependencies.set(edge.node, left)
      if (left === 0) this.#queue.push(edge.node)
    })
  }

  #receive({ node, index }: Edge, gradient: Tensor, what: string): void {
    const expected = node.outputs[index]
    if (expected) checkGradientMatches(what, gradient, expected)
    const slots = this.#slots(node)
    const existing = slots[index]
    slots[index] = existing ? addTo(existing, gradient) : shareWithHistory(gradient)
  }

  #slots(node: Node): (Tensor | null)[] {
    const known = this.#pending.get(node)
    if (known) return known
    const slots = node.outputs.map(() => null)
    this.#pending.set(node, slots)
    return slots
  }
}

/** A reference of the pass's own; a leaf as upstream gradient keeps its place in the graph, too. */
function shareWithHistory(gradient: Tensor): Tensor {
  return share(gradient, edgeOf(gradient))
}

/** The sum, in place if the memory of `existing` is the engine's alone. Takes over `existing`. */
function addTo(existing: Tensor, gradient: Tensor): Tensor {
  const graph = existing.requiresGrad || gradient.requiresGrad
  if (!graph && handleOf(existing).exclusive && existing.memoryFormat === gradient.memoryFormat) {
    native.addInPlace(nativeOf(existing), nativeOf(gradient))
    return existing
  }
  return runScope(() => {
    const sum = add(existing, gradient)
    existing.dispose()
    return shareWithHistory(sum)
  })
}

/** What user code kept lives on. */
function disposeSlot(gradient: Tensor | null | undefined): void {
  if (gradient && !stateOf(gradient).exempt) gradient.dispose()
}

/** Runs a pass from `outputs`; `collect` reads its captures before they are released. */
function runPass<T>(
  roots: readonly Root[],
  captured: readonly Edge[] | null,
  options: BackwardOptions,
  collect: (pass: Pass) => T,
): T {
  const createGraph = options.createGraph ?? false
  return withGradMode(createGraph, () => {
    const pass = new Pass(roots, captured, options.retainGraph ?? createGraph)
    running.push(pass)
    for (const { edge } of roots) retainNode(edge.node)
    try {
      pass.run()
      return collect(pass)
    } finally {
      running.pop()
      pass.releaseCaptures()
      for (const { edge } of roots) dropNode(edge.node)
    }
  })
}

/** The start of a pass at `output`. */
function makeRoot(output: Tensor, gradient: Tensor | null | undefined, operation: string): Root {
  const edge = edgeOf(output)
  if (!edge) {
    const message = `${operation}: expected a tensor that requires a gradient, got one without a gradient graph`
    throw new AutogradError('ERR_NO_GRAPH', message)
  }
  if (gradient) {
    checkGradientMatches(operation, gradient, handleOf(output).info)
    return { edge, gradient }
  }
  if (output.numel !== 1) {
    const message = `${operation}: expected a gradient for an output of shape [${output.shape.join(', ')}]; only one element has a default`
    throw new AutogradError('ERR_NOT_DIFFERENTIABLE', message)
  }
  return { edge, gradient: wrap(onesLike(output)) }
}

function onesLike({ shape, dtype, memoryFormat, device }: Tensor): BindingTensor {
  return native.tensorFull([...shape], 1, dtype, memoryFormat, device)
}

/** `Tensor.backward`. */
export function backward(output: Tensor, gradient: Tensor | undefined, options: BackwardOptions): void {
  runScope(() => {
    const root = runScope(() => makeRoot(output, gradient, 'backward'))
    runPass([root], null, options, () => undefined)
  })
}

/**
 * The derivatives of the sum of `outputs`, each times its `gradOutputs`, with respect to `inputs`: one tensor per input,
 * of its shape and dtype. No `grad` changes.
 *
 * @param options `gradOutputs`: one per output; default 1 for outputs of one element. `retainGraph`, `createGraph`: as
 *   in `Tensor.backward`.
 * @throws AutogradError as `Tensor.backward`, and for an input that the outputs do not depend on (named by its index).
 */
export function grad(
  outputs: Tensor | Tensor[],
  inputs: Tensor[],
  options: BackwardOptions & { gradOutputs?: Tensor[] } = {},
): Tensor[] {
  const list = Array.isArray(outputs) ? outputs : [outputs]
  return runScope(() => {
    const roots = list.map((output, i) => makeRoot(output, options.gradOutputs?.[i], 'grad'))
    const edges = inputs.map(requireEdge)
    return runPass(roots, edges, options, (pass) => edges.map((edge, i) => pass.takeCapture(edge) ?? unused(i)))
  })
}

function requireEdge(input: Tensor, index: number): Edge {
  const edge = edgeOf(input)
  if (edge) return edge
  throw new AutogradError('ERR_NO_GRAPH', `grad: expected input ${index} to require a gradient, but it does not`)
}

function unused(index: number): never {
  throw new AutogradError('ERR_NO_GRAPH', `grad: expected the outputs to depend on input ${index}, but they do not`)
}

function innermostPass(operation: string): Pass {
  const pass = running.at(-1)
  if (pass) return pass
  throw new AutogradError('ERR_NO_GRAPH', `${operation}: expected to be called during a backward pass`)
}

/** Calls `fn` once at the end of the running backward, before it returns. Throws outside of one. */
export function queueBackwardCallback(fn: () => void): void {
  innermostPass('queueBackwardCallback').callbacks.push(fn)
}

/** Calls `fn` if the running backward throws. Throws outside of one. */
export function onBackwardError(fn: () => void): void {
  innermostPass('onBackwardError').errorCallbacks.push(fn)
}
