/** Whether operations are recorded. */
import { AutogradError } from '../errors.ts'
import { refusePromise } from '../scope.ts'
import type { Tensor } from '../tensor.ts'

/** The one switch, of this thread. */
export const gradMode = { enabled: true }

/** Runs `fn` with recording on or off. */
export function withGradMode<T>(enabled: boolean, fn: () => T): T {
  const before = gradMode.enabled
  gradMode.enabled = enabled
  try {
    return fn()
  } finally {
    gradMode.enabled = before
  }
}

/**
 * Runs `fn` without recording its operations for backward: for evaluation and for in-place updates.
 *
 * @throws ArgumentError if `fn` returns a promise: what runs after its first `await` would be recorded again.
 */
export function noGrad<T>(fn: () => T): T {
  return withGradMode(false, () => refusePromise(fn(), 'noGrad'))
}

/** Throws ERR_IN_PLACE if writing to `tensor` would escape the recording. */
export function checkWritable(tensor: Tensor, operation: string): void {
  if (!gradMode.enabled || !tensor.requiresGrad) return
  const message = `${operation}: expected a tensor that autograd does not track, got one that requires a gradient; use noGrad`
  throw new AutogradError('ERR_IN_PLACE', message)
}
