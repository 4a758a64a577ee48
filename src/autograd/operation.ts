/**
 * What an operation is, and the one function through which every operation goes.
 *
 * An operation computes its outputs natively and says how gradients flow back. Backward functions are written with
 * operations themselves, so that they are recorded in turn when a graph of the gradients is asked for.
 */
import { AutogradError } from '../errors.ts'
import { Handle } from '../handle.ts'
import type { BindingTensor } from '../native.ts'
import { edgeOf, handleOf, stateOf, wrap } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { gradMode } from './grad-mode.ts'
import { nextSequence, retainNode } from './node.ts'
import type { Edge, Gradients, Node, OutputInfo } from './node.ts'
import { SavedTensor } from './saved-tensor.ts'

/** Operands; null where an optional one is missing. */
export type Inputs = readonly (Tensor | null)[]

export interface Operation<Options> {
  readonly name: string
  /** Whether an output may use the storage of an input. */
  readonly sharesStorage?: boolean
  /** Computes the outputs, and saves in `context` what backward needs. */
  forward(context: OperationContext, inputs: Inputs, options: Options): readonly BindingTensor[]
  /** Gradients of the inputs, each of its input's shape and dtype, or null. At least one gradient comes in. */
  backward(context: OperationContext, gradients: Gradients, options: Options): Gradients
}

/** The operation's memory between forward and backward. */
export class OperationContext {
  readonly operation: string
  /** Whether each input needs a gradient: in forward whether ever, in backward whether now. All false if unrecorded. */
  needs: readonly boolean[]
  readonly #saved: (SavedTensor | null)[] = []
  readonly #resources: (() => void)[] = []
  readonly #outputsToSave = new Map<number, number>()
  #freed = false

  constructor(operation: string, needs: readonly boolean[]) {
    this.operation = operation
    this.needs = needs
  }

  /** Whether there will be a backward. */
  get recorded(): boolean {
    return this.needs.includes(true)
  }

  /** Keeps tensors, nulls included, in the order `savedTensors` gives them. Nothing is kept if unrecorded. */
  save(...tensors: readonly (Tensor | null)[]): void {
    if (!this.recorded) return
    for (const tensor of tensors) this.#saved.push(tensor && SavedTensor.of(tensor))
  }

  /** Keeps the output of this index, once it exists. */
  saveOutput(index: number): void {
    if (this.recorded) this.#outputsToSave.set(index, this.#saved.push(null) - 1)
  }

  /** Keeps a native result that is no output, or drops it at once if unrecorded. */
  saveResult(result: BindingTensor): void {
    const handle = new Handle(result)
    if (this.recorded) this.#saved.push(new SavedTensor(handle, null))
    else handle.release()
  }

  /** Calls `dispose` when the context is released; at once if unrecorded. */
  onRelease(dispose: () => void): void {
    if (this.recorded) this.#resources.push(dispose)
    else dispose()
  }

  /** What was saved, in the current scope. Throws ERR_GRAPH_FREED, ERR_SAVED_TENSOR_MODIFIED. */
  get savedTensors(): (Tensor | null)[] {
    return this.#saved.map((saved) => saved && saved.unpack(this.operation))
  }

  /** @internal Keeps the outputs that were asked for; they come from `node`. */
  attachOutputs(outputs: readonly Tensor[], node: Node): void {
    for (const [index, slot] of this.#outputsToSave) {
      const output = outputs[index]
      if (output) this.#saved[slot] = SavedTensor.ofOutput(output, { node, index })
    }
  }

  /** @internal Throws ERR_GRAPH_FREED if something was saved and is gone. */
  checkAlive(): void {
    if (!this.#freed) return
    const message = `backward of '${this.operation}': its saved tensors were freed by an earlier backward; use retainGraph`
    throw new AutogradError('ERR_GRAPH_FREED', message)
  }

  /** @internal Drops everything that was saved. */
  release(): void {
    this.#freed ||= this.#saved.length > 0 || this.#resources.length > 0
    for (const saved of this.#saved.splice(0)) saved?.release()
    for (const dispose of this.#resources.splice(0)) dispose()
  }
}

/** A recorded operation. */
class OperationNode<Options> implements Node {
  readonly name: string
  readonly sequence = nextSequence()
  readonly edges: readonly (Edge | null)[]
  readonly outputs: readonly OutputInfo[]
  holders = 0
  readonly #operation: Operation<Options>
  readonly #context: OperationContext
  readonly #options: Options

  constructor(
    operation: Operation<Options>,
    context: OperationContext,
    inputs: Inputs,
    outputs: readonly Tensor[],
    options: Options,
  ) {
    this.name = operation.name
    this.edges = inputs.map((input) => input && edgeOf(input))
    for (const edge of this.edges) if (edge) retainNode(edge.node)
    this.outputs = outputs.map((output) => handleOf(output).info)
    this.#operation = operation
    this.#context = context
    this.#options = options
  }

  apply(gradients: Gradients, needs: readonly boolean[]): Gradients {
    this.#context.checkAlive()
    this.#context.needs = needs
    return this.#operation.backward(this.#context, gradients, this.#options)
  }

  release(): void {
    this.#context.release()
  }
}

/** Runs `operation` and records it if recording is on and an input requires a gradient. */
export function applyFunction<Options>(operation: Operation<Options>, inputs: Inputs, options: Options): Tensor[] {
  const needs = inputs.map((input) => gradMode.enabled && input !== null && input.requiresGrad)
  const context = new OperationContext(operation.name, needs)
  let results: readonly BindingTensor[]
  try {
    results = operation.forward(context, inputs, options)
  } catch (error) {
    context.release()
    throw error
  }
  const outputs = results.map(wrap)
  if (operation.sharesStorage) [...inputs, ...outputs].forEach(markSharing)
  if (context.recorded) record(operation, context, inputs, outputs, options)
  return outputs
}

/** `applyFunction` for an operation with one output. */
export function applySingle<Options>(operation: Operation<Options>, inputs: Inputs, options: Options): Tensor {
  return applyFunction(operation, inputs, options)[0] as Tensor
}

function markSharing(tensor: Tensor | null): void {
  if (tensor) handleOf(tensor).sharesStorage = true
}

function record<Options>(
  operation: Operation<Options>,
  context: OperationContext,
  inputs: Inputs,
  outputs: readonly Tensor[],
  options: Options,
): void {
  const node = new OperationNode(operation, context, inputs, outputs, options)
  outputs.forEach((output, index) => {
    stateOf(output).setHistory({ node, index })
  })
  context.attachOutputs(outputs, node)
}

/** The backward of an operation that has no derivative of its own. */
export function notDifferentiable(name: string): () => never {
  return () => {
    throw new AutogradError('ERR_NOT_DIFFERENTIABLE', `the derivative of '${name}' is not supported`)
  }
}
