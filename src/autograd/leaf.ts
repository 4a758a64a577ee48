/** Leaves of the gradient graph: how gradients arrive in `grad`. */
import { ifAbandoned } from '../capture-phase.ts'
import { ArgumentError, AutogradError, DeviceError, DTypeError, ShapeError } from '../errors.ts'
import { native } from '../native.ts'
import { clone } from '../ops/clone.ts'
import { convert } from '../ops/convert.ts'
import { add } from '../ops/arithmetic.ts'
import { exempt } from '../scope.ts'
import { handleOf, nativeOf, share, stateOf, Tensor } from '../tensor.ts'
import { gradMode } from './grad-mode.ts'
import type { Gradients, Node, OutputInfo } from './node.ts'

/** The node that adds what arrives to the leaf's `grad`. */
export class AccumulateGrad implements Node {
  readonly name = 'accumulateGrad'
  /** As soon as a gradient is complete it is added, so that hooks may start to reduce it. */
  readonly sequence = Number.POSITIVE_INFINITY
  readonly edges = []
  readonly holders = null
  readonly leaf: Tensor
  readonly #info: OutputInfo

  constructor(leaf: Tensor) {
    this.leaf = leaf
    this.#info = handleOf(leaf).info
  }

  /** The leaf may have been converted since. */
  get outputs(): readonly OutputInfo[] {
    return [stateOf(this.leaf).handle?.info ?? this.#info]
  }

  apply([gradient]: Gradients): Gradients {
    if (gradient && !this.leaf.disposed && this.leaf.requiresGrad) {
      accumulate(this.leaf, gradient)
      for (const hook of [...(stateOf(this.leaf).gradHooks ?? [])]) hook(this.leaf)
    }
    return []
  }

  release(): void {}
}

/** The accumulating node of a leaf, one per leaf. */
export function accumulateLater(leaf: Tensor): Node {
  const state = stateOf(leaf)
  state.accumulator ??= new AccumulateGrad(leaf)
  return state.accumulator
}

/** `leaf.grad` for this library's own use: does not count as seen by a caller. */
export function gradientOf(leaf: Tensor): Tensor | null {
  const { grad } = stateOf(leaf)
  return grad && !grad.disposed ? grad : null
}

/** Adds `gradient`, which the caller disposes, to `leaf.grad` in the leaf's memory format. */
function accumulate(leaf: Tensor, gradient: Tensor): void {
  const converted = gradient.memoryFormat === leaf.memoryFormat ? gradient : inFormatOf(leaf, gradient)
  const existing = gradientOf(leaf)
  if (!existing) {
    storeGradient(leaf, takeOver(converted))
  } else if (gradMode.enabled || existing.requiresGrad) {
    storeGradient(leaf, add(existing, converted))
  } else {
    native.addInPlace(nativeOf(existing), nativeOf(sharesMemory(existing, converted) ? clone(converted) : converted))
  }
}

function inFormatOf({ memoryFormat }: Tensor, gradient: Tensor): Tensor {
  return convert(gradient, { dtype: null, memoryFormat, device: null })
}

/** Whether `addend` may lie in the memory of `sum`, as when a leaf's own gradient is passed to backward. */
function sharesMemory(sum: Tensor, addend: Tensor): boolean {
  return handleOf(sum) === handleOf(addend) || handleOf(addend).sharesStorage
}

/** The gradient itself if nothing else uses its memory, else a copy. */
function takeOver(gradient: Tensor): Tensor {
  const owned = handleOf(gradient).exclusive && stateOf(gradient).history === null && !gradMode.enabled
  return owned ? gradient : clone(gradient)
}

function storeGradient(leaf: Tensor, gradient: Tensor): void {
  const state = stateOf(leaf)
  disposeUnseen(leaf)
  state.grad = exempt(share(gradient, stateOf(gradient).history))
  state.gradExposed = false
  // What a recording makes has no values before the first replay.
  ifAbandoned(() => replaceGradient(leaf, null))
}

/** A gradient that no caller has seen has no other owner. */
function disposeUnseen(leaf: Tensor): void {
  const state = stateOf(leaf)
  if (state.grad && !state.gradExposed) state.grad.dispose()
}

/** The setter of `Tensor.grad`. */
export function replaceGradient(leaf: Tensor, gradient: Tensor | null): void {
  const state = stateOf(leaf)
  if (gradient === state.grad) return
  if (gradient !== null) checkGradient(leaf, gradient)
  disposeUnseen(leaf)
  state.grad = gradient && exempt(gradient)
  state.gradExposed = true
}

function checkGradient(leaf: Tensor, gradient: Tensor): void {
  if (!(gradient instanceof Tensor)) {
    throw new ArgumentError('ERR_ARGUMENT', `grad: expected a Tensor or null, got ${typeof gradient}`)
  }
  checkGradientMatches('grad', gradient, handleOf(leaf).info)
}

/** Throws unless `gradient` has the shape, dtype and device of what it is the gradient of. */
export function checkGradientMatches(what: string, gradient: Tensor, expected: OutputInfo): void {
  const { device, dtype, shape } = gradient
  if (shape.length !== expected.shape.length || shape.some((size, i) => size !== expected.shape[i])) {
    const message = `${what}: expected a gradient of shape [${expected.shape.join(', ')}], got [${shape.join(', ')}]`
    throw new ShapeError('ERR_SHAPE', message)
  }
  if (dtype !== expected.dtype) {
    throw new DTypeError('ERR_DTYPE', `${what}: expected a gradient of dtype ${expected.dtype}, got ${dtype}`)
  }
  if (device !== expected.device) {
    throw new DeviceError('ERR_DEVICE', `${what}: expected a gradient on ${expected.device}, got one on ${device}`)
  }
}

/**
 * Calls `hook` each time a backward pass has finished adding to `leaf.grad`.
 *
 * @returns a function that removes the hook.
 * @throws AutogradError if `leaf` is not a leaf that requires a gradient.
 */
export function registerGradReadyHook(leaf: Tensor, hook: (leaf: Tensor) => void): () => void {
  const state = stateOf(leaf)
  if (!leaf.requiresGrad || state.history) {
    throw new AutogradError('ERR_NO_GRAPH', 'registerGradReadyHook: expected a leaf that requires a gradient')
  }
  const hooks = (state.gradHooks ??= new Set())
  const registered = (tensor: Tensor): void => hook(tensor)
  hooks.add(registered)
  return () => hooks.delete(registered)
}
