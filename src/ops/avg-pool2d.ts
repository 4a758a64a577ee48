/** The mean of each window. */
import { applySingle, notDifferentiable } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Pair } from '../types.ts'
import { toWindow } from './pool2d.ts'
import type { Pool2dOptions, Window } from './pool2d.ts'

const operation: Operation<Window> = {
  name: 'avgPool2d',
  forward: (_context, [x], { kernel, stride, padding }) => [
    native.avgPool2d(nativeOf(x as Tensor), kernel, stride, padding),
  ],
  backward: (_context, [gradient], window) => [applySingle(backwardOperation, [gradient as Tensor], window)],
}

const backwardOperation: Operation<Window> = {
  name: 'avgPool2d backward',
  forward: (_context, [gradient], { inputShape, kernel, stride, padding }) => [
    native.avgPool2dBackward(nativeOf(gradient as Tensor), [...inputShape], kernel, stride, padding),
  ],
  backward: notDifferentiable('avgPool2d backward'),
}

/**
 * The mean of each window; padding counts as zeros. Differentiable once.
 *
 * @param input (N, C, H, W), float32 or float64
 * @returns (N, C, H', W') with H' = ⌊(H + 2·padding − kernel) / stride⌋ + 1, and W' alike
 */
export function avgPool2d(input: Tensor, kernelSize: Pair, options: Pool2dOptions = {}): Tensor {
  return applySingle(operation, [input], toWindow(input, kernelSize, options, 'avgPool2d'))
}
