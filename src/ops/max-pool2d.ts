/** The largest value of each window. */
import { applySingle, notDifferentiable } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { Pair } from '../types.ts'
import { toWindow } from './pool2d.ts'
import type { Pool2dOptions, Window } from './pool2d.ts'

const operation: Operation<Window> = {
  name: 'maxPool2d',
  forward(context, [x], { kernel, stride, padding }) {
    const { output, indices } = native.maxPool2d(nativeOf(x as Tensor), kernel, stride, padding)
    context.saveResult(indices)
    return [output]
  },
  backward({ savedTensors }, [gradient], window) {
    return [applySingle(backwardOperation, [gradient as Tensor, savedTensors[0] as Tensor], window)]
  },
}

const backwardOperation: Operation<Window> = {
  name: 'maxPool2d backward',
  forward(_context, inputs, { inputShape, kernel, stride, padding }) {
    const [gradient, indices] = inputs.map((input) => nativeOf(input as Tensor))
    return [native.maxPool2dBackward(gradient!, indices!, [...inputShape], kernel, stride, padding)]
  },
  backward: notDifferentiable('maxPool2d backward'),
}

/**
 * The largest value of each window; NaN counts as largest. Differentiable once; of equal values the first gets the
 * gradient.
 *
 * @param input (N, C, H, W), float32 or float64
 * @returns (N, C, H', W') with H' = ⌊(H + 2·padding − kernel) / stride⌋ + 1, and W' alike
 */
export function maxPool2d(input: Tensor, kernelSize: Pair, options: Pool2dOptions = {}): Tensor {
  return applySingle(operation, [input], toWindow(input, kernelSize, options, 'maxPool2d'))
}
