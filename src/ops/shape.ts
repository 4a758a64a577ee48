/** Arithmetic on shapes and option values shared by the operations. */
import { argumentError, ShapeError } from '../errors.ts'
import type { Pair, Shape } from '../types.ts'

/** `value` if it is an integer: the native side would cut off its fraction. */
export function integer(value: number, name: string): number {
  if (Number.isSafeInteger(value)) return value
  throw argumentError(`${name}: expected an integer, got ${String(value)}`)
}

/** A copy of `shape`, whose sizes are integers. */
export function toShape(shape: Shape, operation: string): number[] {
  if (Array.isArray(shape) && shape.every(Number.isSafeInteger)) return [...shape]
  throw argumentError(`${operation}: expected a shape of integers, got ${JSON.stringify(shape)}`)
}

export function sameShape(a: Shape, b: Shape): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i])
}

/** `dim` as a number from 0; negative ones count from the end. */
export function normalizeDim(dim: number, dimensions: number, operation: string): number {
  const normalized = dim < 0 ? dim + dimensions : dim
  if (Number.isInteger(dim) && normalized >= 0 && normalized < dimensions) return normalized
  const message = `${operation}: expected a dimension from ${-dimensions} to ${dimensions - 1}, got ${dim}`
  throw argumentError(message)
}

/** The shape that two shapes broadcast to. */
export function broadcastShapes(a: Shape, b: Shape, operation: string): number[] {
  const length = Math.max(a.length, b.length)
  return Array.from({ length }, (_, i) => {
    const left = a[i - length + a.length] ?? 1
    const right = b[i - length + b.length] ?? 1
    if (left === right || right === 1) return left
    if (left === 1) return right
    const message = `${operation}: expected shapes that broadcast, got [${a.join(', ')}] and [${b.join(', ')}]`
    throw new ShapeError('ERR_SHAPE', message)
  })
}

/** Product of sizes. */
export function countElements(shape: Shape): number {
  return shape.reduce((product, size) => product * size, 1)
}

/** [height, width] from one number for both, or two. */
export function toPair(value: Pair, name: string): [number, number] {
  const pair: readonly unknown[] = typeof value === 'number' ? [value, value] : value
  if (Array.isArray(pair) && pair.length === 2 && pair.every(Number.isInteger)) return [...pair] as [number, number]
  throw argumentError(`${name}: expected an integer or two, got ${JSON.stringify(value)}`)
}
