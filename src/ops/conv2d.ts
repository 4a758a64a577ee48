/** Two-dimensional convolution. */
import { applySingle, notDifferentiable } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf, nativeOrNull } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import type { MemoryFormat, Pair, Shape } from '../types.ts'
import { integer, toPair } from './shape.ts'
import { sum } from './sum.ts'

/** Geometry of a convolution. */
export interface Conv2dOptions {
  /** Steps of the kernel. Default: 1. */
  stride?: Pair
  /** Zeros added on each side. Default: 0. */
  padding?: Pair
  /** Blocks of channels that do not see each other. Default: 1. */
  groups?: number
}

interface Geometry {
  readonly stride: number[]
  readonly padding: number[]
  readonly groups: number
  readonly inputShape: Shape
  readonly inputMemoryFormat: MemoryFormat
  readonly weightShape: Shape
}

const operation: Operation<Geometry> = {
  name: 'conv2d',
  forward(context, inputs, { stride, padding, groups }) {
    const [x, weight] = inputs as [Tensor, Tensor]
    const result = native.conv2d(nativeOf(x), nativeOf(weight), nativeOrNull(inputs[2]), stride, padding, groups)
    context.save(context.needs[1] ? x : null, context.needs[0] ? weight : null)
    return [result]
  },
  backward({ needs, savedTensors }, [gradient], geometry) {
    const [x, weight] = savedTensors as [Tensor, Tensor]
    const g = gradient as Tensor
    return [
      needs[0] ? applySingle(backwardInput, [g, weight], geometry) : null,
      needs[1] ? applySingle(backwardWeight, [g, x], geometry) : null,
      needs[2] ? sum(g, [0, 2, 3]) : null,
    ]
  },
}

const backwardInput: Operation<Geometry> = {
  name: 'conv2d backward',
  forward(_context, inputs, { inputShape, inputMemoryFormat, stride, padding, groups }) {
    const [gradient, weight] = inputs.map((input) => nativeOf(input as Tensor))
    const shape = [...inputShape]
    return [native.conv2dBackwardInput(gradient!, weight!, shape, inputMemoryFormat, stride, padding, groups)]
  },
  backward: notDifferentiable('conv2d backward'),
}

const backwardWeight: Operation<Geometry> = {
  name: 'conv2d backward',
  forward(_context, inputs, { weightShape, stride, padding, groups }) {
    const [gradient, x] = inputs.map((input) => nativeOf(input as Tensor))
    return [native.conv2dBackwardWeight(gradient!, x!, [...weightShape], stride, padding, groups)]
  },
  backward: notDifferentiable('conv2d backward'),
}

/**
 * Cross-correlation of images with kernels. Differentiable once.
 *
 * @param input (N, C, H, W), float32 or float64; the output has its memory format
 * @param weight (O, C / groups, KH, KW), of the input's dtype
 * @param bias (O), of the input's dtype. Default: none.
 * @returns (N, O, H', W') with H' = ⌊(H + 2·padding − KH) / stride⌋ + 1, and W' alike
 */
export function conv2d(input: Tensor, weight: Tensor, bias: Tensor | null = null, options: Conv2dOptions = {}): Tensor {
  return applySingle(operation, [input, weight, bias], {
    stride: toPair(options.stride ?? 1, 'conv2d stride'),
    padding: toPair(options.padding ?? 0, 'conv2d padding'),
    groups: integer(options.groups ?? 1, 'conv2d groups'),
    inputShape: input.shape,
    inputMemoryFormat: input.memoryFormat,
    weightShape: weight.shape,
  })
}
