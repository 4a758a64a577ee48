/** Windows of pooling operations. */
import type { Tensor } from '../tensor.ts'
import type { Pair, Shape } from '../types.ts'
import { toPair } from './shape.ts'

/** Geometry of a pooling window. */
export interface Pool2dOptions {
  /** Steps of the window. Default: its size. */
  stride?: Pair
  /** Padding on each side: −∞ for the maximum, zeros that count for the average. Default: 0. */
  padding?: Pair
}

export interface Window {
  readonly kernel: number[]
  readonly stride: number[]
  readonly padding: number[]
  readonly inputShape: Shape
}

/** The window over `input` with defaults filled in. */
export function toWindow(input: Tensor, kernelSize: Pair, options: Pool2dOptions, operation: string): Window {
  const kernel = toPair(kernelSize, `${operation} kernelSize`)
  return {
    kernel,
    stride: toPair(options.stride ?? kernel, `${operation} stride`),
    padding: toPair(options.padding ?? 0, `${operation} padding`),
    inputShape: input.shape,
  }
}
