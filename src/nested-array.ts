/** Nested JavaScript arrays to one flat typed array and a shape. */
import { argumentError, ShapeError } from './errors.ts'
import type { DType, NestedArray, TypedArray } from './types.ts'

export interface Flat {
  readonly data: TypedArray
  readonly shape: number[]
  /** The default dtype of such data. */
  readonly dtype: DType
}

/**
 * All elements in row-major order. bigints make int64, numbers float32.
 *
 * @throws ShapeError that names the first array of another length; ArgumentError for an element that is no number, and
 *   for numbers mixed with bigints.
 */
export function flatten(data: number | NestedArray): Flat {
  const shape = shapeOf(data)
  const values: (number | bigint)[] = []
  collect(data, shape, [], values)
  if (typeof values[0] !== 'bigint') return { data: Float64Array.from(values as number[]), shape, dtype: 'float32' }
  return { data: BigInt64Array.from(values as bigint[]), shape, dtype: 'int64' }
}

/** Lengths along the first element of each level. */
function shapeOf(data: unknown): number[] {
  const shape: number[] = []
  let level = data
  while (Array.isArray(level)) {
    shape.push(level.length)
    level = level[0]
  }
  return shape
}

function collect(value: unknown, shape: readonly number[], path: number[], values: (number | bigint)[]): void {
  const length = shape[path.length]
  if (length === undefined) {
    collectElement(value, path, values)
    return
  }
  if (!Array.isArray(value) || value.length !== length) {
    const got = Array.isArray(value) ? `${value.length}` : `${String(value)}`
    throw new ShapeError('ERR_SHAPE', `tensor: expected an array of length ${length} at ${place(path)}, got ${got}`)
  }
  for (let i = 0; i < length; i++) collect(value[i], shape, [...path, i], values)
}

function collectElement(value: unknown, path: readonly number[], values: (number | bigint)[]): void {
  if (Array.isArray(value)) {
    throw new ShapeError(
      'ERR_SHAPE',
      `tensor: expected a number at ${place(path)}, got an array of length ${value.length}`,
    )
  }
  if (typeof value !== 'number' && typeof value !== 'bigint') {
    throw argumentError(`tensor: expected a number at ${place(path)}, got ${String(value)}`)
  }
  if (values.length > 0 && typeof values[0] !== typeof value) {
    throw argumentError(`tensor: expected a ${typeof values[0]} as before at ${place(path)}, got a ${typeof value}`)
  }
  values.push(value)
}

function place(path: readonly number[]): string {
  return path.length === 0 ? 'the top' : `[${path.join('][')}]`
}
