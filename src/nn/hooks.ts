/**
 * Hooks of modules.
 *
 * Full backward hooks work as in PyTorch: identity operations around a module's inputs and its output see the gradients
 * go by; the one at the inputs calls the hooks and may replace the gradients.
 */
import { applyFunction } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import type { Gradients } from '../autograd/node.ts'
import { argumentError } from '../errors.ts'
import { native } from '../native.ts'
import type { TensorInfo } from '../handle.ts'
import { handleOf, nativeOf, share, stateOf, Tensor, wrap } from '../tensor.ts'
import type { Module } from './module.ts'

/** Sees, and may replace, what `call` returns. */
export type ForwardHook = (module: Module, inputs: Tensor[], output: Tensor) => Tensor | void

/** Sees the gradients of a module's inputs and output, and may replace those of the inputs. */
export type FullBackwardHook = (module: Module, gradInput: Tensor[], gradOutput: Tensor[]) => Tensor[] | void

/** What registering a hook returns. */
export interface HookHandle {
  remove(): void
}

/** The hooks of one module, in the order of registration. */
export class ModuleHooks {
  readonly forward = new Set<{ readonly hook: ForwardHook }>()
  readonly backward = new Set<{ readonly hook: FullBackwardHook }>()
}

/** Adds `hook` to `hooks`; the same function may be added several times. */
export function addHook<H>(hooks: Set<{ readonly hook: H }>, hook: H): HookHandle {
  if (typeof hook !== 'function') throw argumentError(`hook: expected a function, got ${typeof hook}`)
  const entry = { hook }
  hooks.add(entry)
  return { remove: () => void hooks.delete(entry) }
}

/** Runs the forward hooks; each sees what the one before it returned. */
export function runForwardHooks(module: Module, hooks: ModuleHooks, inputs: Tensor[], output: Tensor): Tensor {
  let result = output
  for (const { hook } of [...hooks.forward]) {
    const replacement: unknown = hook(module, inputs, result)
    if (replacement instanceof Tensor) result = replacement
    else if (replacement !== undefined) throw argumentError('forward hook: expected to return a Tensor or nothing')
  }
  return result
}

/** The way of gradients through one call of a module. */
class BackwardPassage {
  readonly module: Module
  readonly hooks: ModuleHooks
  /** The inputs that gradients will come by for. */
  readonly inputs: readonly TensorInfo[]
  gradOutput: Tensor | null = null

  constructor(module: Module, hooks: ModuleHooks, inputs: readonly Tensor[]) {
    this.module = module
    this.hooks = hooks
    this.inputs = inputs.map((input) => handleOf(input).info)
  }

  /** Calls the hooks; the gradients of the inputs as the last of them left them. */
  run(gradInput: Tensor[]): Tensor[] {
    const gradOutput = this.gradOutput ? [this.gradOutput] : []
    let gradients = gradInput
    for (const { hook } of [...this.hooks.backward]) {
      const replacement: unknown = hook(this.module, gradients, gradOutput)
      if (replacement !== undefined) gradients = checkReplacement(replacement, gradInput.length)
    }
    return gradients
  }

  keepOutput(gradient: Tensor): void {
    this.dropOutput()
    this.gradOutput = share(gradient, stateOf(gradient).history)
  }

  dropOutput(): void {
    if (this.gradOutput && !stateOf(this.gradOutput).exempt) this.gradOutput.dispose()
    this.gradOutput = null
  }
}

function checkReplacement(value: unknown, length: number): Tensor[] {
  if (Array.isArray(value) && value.length === length && value.every((item) => item instanceof Tensor)) return value
  throw argumentError(
    `full backward hook: expected to return nothing or ${length} tensors, one per gradient of the inputs`,
  )
}

/** At the inputs: runs last, when all gradients of the inputs are known. */
const inputOperation: Operation<BackwardPassage> = {
  name: 'module inputs',
  sharesStorage: true,
  forward: (_context, inputs) => inputs.map((input) => native.tensorAlias(nativeOf(input as Tensor))),
  backward(_context, gradients, passage) {
    try {
      return passage.run(fillMissing(gradients, passage.inputs))
    } finally {
      passage.dropOutput()
    }
  },
}

/** Hooks see a tensor per input: zeros where nothing flowed. */
function fillMissing(gradients: Gradients, inputs: readonly TensorInfo[]): Tensor[] {
  return inputs.map((input, i) => gradients[i] ?? zerosLike(input))
}

function zerosLike({ shape, dtype, memoryFormat, device }: TensorInfo): Tensor {
  return wrap(native.tensorFull([...shape], 0, dtype, memoryFormat, device))
}

/** At the output: remembers its gradient; calls the hooks itself if no input needs one. */
const outputOperation: Operation<BackwardPassage> = {
  name: 'module output',
  sharesStorage: true,
  forward: (_context, [output]) => [native.tensorAlias(nativeOf(output as Tensor))],
  backward(_context, [gradient], passage) {
    passage.keepOutput(gradient as Tensor)
    if (passage.inputs.length === 0) {
      passage.run([])
      passage.dropOutput()
    }
    return [gradient as Tensor]
  },
}

/** Runs `forward` between the two identity operations if the module has full backward hooks. */
export function withBackwardHooks(
  module: Module,
  hooks: ModuleHooks,
  inputs: Tensor[],
  forward: (inputs: Tensor[]) => Tensor,
): Tensor {
  if (hooks.backward.size === 0) return forward(inputs)
  const tracked = inputs.filter((input) => input.requiresGrad)
  const passage = new BackwardPassage(module, hooks, tracked)
  const aliases = tracked.length > 0 ? applyFunction(inputOperation, tracked, passage) : []
  const output = forward(inputs.map((input) => (input.requiresGrad ? (aliases.shift() as Tensor) : input)))
  return output.requiresGrad ? (applyFunction(outputOperation, [output], passage)[0] as Tensor) : output
}
