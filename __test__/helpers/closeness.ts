/** Comparisons of numbers, written so that NaN fails unless NaN is expected. */
import type { ExecutionContext } from 'ava'
import type { Tensor } from 'syncbn'

type Values = ArrayLike<number>

/** The elements as numbers. */
export function toNumbers(values: Tensor | Values): number[] {
  const array = 'dataSync' in values ? values.dataSync() : values
  return Array.from(array as ArrayLike<number | bigint>, Number)
}

/** Largest |actual − expected|; NaN and infinities must be in the same places. */
export function largestDifference(actual: Tensor | Values, expected: Tensor | Values): number {
  const [a, b] = [toNumbers(actual), toNumbers(expected)]
  if (a.length !== b.length) return NaN
  let largest = 0
  for (let i = 0; i < a.length; i++) {
    if (Object.is(a[i], b[i]) || a[i] === b[i]) continue
    const difference = Math.abs((a[i] as number) - (b[i] as number))
    if (!(difference <= largest)) largest = difference
    if (Number.isNaN(difference)) return NaN
  }
  return largest
}

/** Largest finite |value|. */
export function scaleOf(values: Tensor | Values): number {
  return toNumbers(values).reduce((most, value) => (Number.isFinite(value) ? Math.max(most, Math.abs(value)) : most), 0)
}

/** Half a unit in the last place, relative. */
export const ROUNDING: Readonly<Record<string, number>> = { float32: 2 ** -24, float64: 2 ** -53 }

/** Asserts shapes equal and every difference at most `tolerance`. */
export function assertClose(
  t: ExecutionContext,
  actual: Tensor | null,
  expected: Tensor,
  tolerance: number,
  what: string,
): void {
  if (!actual) return t.fail(`${what}: missing`)
  t.deepEqual([...actual.shape], [...expected.shape], `${what}: shape`)
  const difference = largestDifference(actual, expected)
  if (!(difference <= tolerance)) t.fail(`${what}: differs by ${difference}, tolerance ${tolerance}`)
}
