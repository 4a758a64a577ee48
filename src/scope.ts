/**
 * Tensor scopes: who disposes what was made inside a function.
 *
 * A scope knows every tensor made while it is the innermost one. At its end the tensors that the function returned move
 * to the scope around it; the rest is disposed, save those that something else holds: kept tensors, parameters, buffers
 * and gradients are exempt. Outside every scope nothing is tracked; the garbage collector is the backstop there.
 */
import { argumentError } from './errors.ts'
import { stateOf, Tensor } from './tensor.ts'

let innermost: Tensor[] | null = null

/** Makes the innermost scope responsible for `tensor`. */
export function track(tensor: Tensor): Tensor {
  innermost?.push(tensor)
  return tensor
}

/** No scope disposes `tensor` from now on. */
export function exempt<T extends Tensor>(tensor: T): T {
  stateOf(tensor).exempt = true
  return tensor
}

/** Runs `fn` in a scope of its own; what it returns survives. If it throws, everything made inside is disposed. */
export function runScope<T>(fn: () => T): T {
  const outer = innermost
  const made: Tensor[] = []
  innermost = made
  const survivors = new Set<unknown>()
  try {
    const result = fn()
    collectTensors(result, survivors)
    return result
  } finally {
    innermost = outer
    for (const tensor of made) leaveScope(tensor, survivors)
  }
}

function leaveScope(tensor: Tensor, survivors: ReadonlySet<unknown>): void {
  if (tensor.disposed || stateOf(tensor).exempt) return
  if (survivors.has(tensor)) track(tensor)
  else tensor.dispose()
}

/** The tensors in `value`: itself, or inside arrays, maps, sets and plain objects. */
export function tensorsIn(value: unknown): Tensor[] {
  const found = new Set<unknown>()
  collectTensors(value, found)
  return [...found].filter((item) => item instanceof Tensor)
}

/** Adds to `found` the tensors in `value`, and what they are in. */
function collectTensors(value: unknown, found: Set<unknown>): void {
  const pending = [value]
  while (pending.length > 0) {
    const next = pending.pop()
    if (typeof next !== 'object' || next === null || found.has(next)) continue
    found.add(next)
    if (!(next instanceof Tensor)) pending.push(...contents(next))
  }
}

function contents(value: object): Iterable<unknown> {
  if (Array.isArray(value) || value instanceof Set) return value
  if (value instanceof Map) return value.values()
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null ? Object.values(value) : []
}

/**
 * Runs `fn` and disposes every tensor made inside that is not returned (itself or in arrays, maps, sets and plain
 * objects), kept, a parameter, a buffer or a gradient. What backward needs stays until then. If `fn` throws, everything
 * made inside is disposed.
 *
 * @throws ArgumentError if `fn` returns a promise: what runs after its first `await` would be outside the scope.
 */
export function tidy<T>(fn: () => T): T {
  return runScope(() => refusePromise(fn(), 'tidy'))
}

/** Takes `tensor` out of every scope: it lives until it is disposed or garbage. Returns it. */
export function keep<T extends Tensor>(tensor: T): T {
  return exempt(tensor)
}

/** Returns `result` unless it is a promise, which would outlive the synchronous call it came from. */
export function refusePromise<T>(result: T, operation: string): T {
  if (typeof (result as { then?: unknown } | null | undefined)?.then === 'function') {
    throw argumentError(`${operation}: expected a synchronous function, got one that returns a promise`)
  }
  return result
}
