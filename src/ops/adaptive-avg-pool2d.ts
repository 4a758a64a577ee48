/** Means of as many windows as the output has places. */
import { applySingle, notDifferentiable } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Pair, Shape } from '../types.ts'
import { toPair } from './shape.ts'

interface Options {
  readonly outputSize: number[]
  readonly inputShape: Shape
}

const operation: Operation<Options> = {
  name: 'adaptiveAvgPool2d',
  forward: (_context, [x], { outputSize }) => [native.adaptiveAvgPool2d(nativeOf(x as Tensor), outputSize)],
  backward: (_context, [gradient], options) => [applySingle(backwardOperation, [gradient as Tensor], options)],
}

const backwardOperation: Operation<Options> = {
  name: 'adaptiveAvgPool2d backward',
  forward: (_context, [gradient], { inputShape }) => [
    native.adaptiveAvgPool2dBackward(nativeOf(gradient as Tensor), [...inputShape]),
  ],
  backward: notDifferentiable('adaptiveAvgPool2d backward'),
}

/**
 * Means over windows that divide the image evenly: row i of H' covers the rows from ⌊i·H/H'⌋ to ⌈(i+1)·H/H'⌉.
 * Differentiable once.
 *
 * @param input (N, C, H, W), float32 or float64
 * @param outputSize H' and W', or one number for both
 * @returns (N, C, H', W')
 */
export function adaptiveAvgPool2d(input: Tensor, outputSize: Pair): Tensor {
  const size = toPair(outputSize, 'adaptiveAvgPool2d outputSize')
  return applySingle(operation, [input], { outputSize: size, inputShape: input.shape })
}
