/** The reduction of a loss. */
import { argumentError } from '../errors.ts'
import type { Reduction } from '../types.ts'

/** Fills in 'mean'; throws for anything else than a reduction. */
export function toReduction(reduction: Reduction | undefined, operation: string): Reduction {
  if (reduction === undefined || reduction === 'mean') return 'mean'
  if (reduction === 'sum' || reduction === 'none') return reduction
  throw argumentError(`${operation}: expected reduction 'none', 'sum' or 'mean', got ${JSON.stringify(reduction)}`)
}
