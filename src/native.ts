/**
 * The native functions, with their errors made into this library's classes exactly once: thrown ones and those that a
 * promise is rejected with. Everything else in src/ calls the native side through `native`.
 */
import { createRequire } from 'node:module'
import type * as Binding from './binding.d.ts'
import { fromNative } from './errors.ts'

export type {
  BindingArray,
  BindingBatchNormOptions,
  BindingGraph,
  BindingGroup,
  BindingReducer,
  BindingSaved,
  BindingTensor,
  BindingWork,
} from './binding.d.ts'

type AnyFunction = (...args: unknown[]) => unknown

function convert(fn: AnyFunction): AnyFunction {
  return (...args) => {
    try {
      const result = fn(...args)
      return result instanceof Promise ? result.catch(rethrow) : result
    } catch (error) {
      return rethrow(error)
    }
  }
}

function rethrow(error: unknown): never {
  throw fromNative(error)
}

/** A class keeps its identity: only plain functions are wrapped. */
function isClass(value: unknown): boolean {
  return typeof value === 'function' && /^Binding[A-Z]/.test(value.name)
}

function wrapAll(binding: Record<string, unknown>): Record<string, unknown> {
  const wrapped: Record<string, unknown> = {}
  for (const [name, value] of Object.entries(binding)) {
    wrapped[name] = typeof value === 'function' && !isClass(value) ? convert(value as AnyFunction) : value
  }
  return wrapped
}

/** Every function and class of the native library; functions throw this library's errors. */
export const native = wrapAll(createRequire(import.meta.url)('./binding.cjs')) as unknown as typeof Binding
