/** Softmax and its logarithm. */
import { applySingle, notDifferentiable } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { integer } from './shape.ts'

interface Options {
  readonly dim: number
  readonly log: boolean
}

const operation: Operation<Options> = {
  name: 'softmax',
  forward(context, [x], { dim, log }) {
    context.saveOutput(0)
    return [native.softmax(nativeOf(x as Tensor), dim, log)]
  },
  backward({ savedTensors }, [gradient], options) {
    return [applySingle(backwardOperation, [gradient as Tensor, savedTensors[0] as Tensor], options)]
  },
}

const backwardOperation: Operation<Options> = {
  name: 'softmax backward',
  forward(_context, inputs, { dim, log }) {
    const [gradient, output] = inputs.map((input) => nativeOf(input as Tensor))
    return [native.softmaxBackward(gradient!, output!, dim, log)]
  },
  backward: notDifferentiable('softmax backward'),
}

/** exp(input) / Σ exp(input) along `dim`, without overflow. float32 or float64; differentiable once. */
export function softmax(input: Tensor, dim: number): Tensor {
  return applySingle(operation, [input], { dim: integer(dim, 'softmax dim'), log: false })
}

/** input − log Σ exp(input) along `dim`, without overflow. float32 or float64; differentiable once. */
export function logSoftmax(input: Tensor, dim: number): Tensor {
  return applySingle(operation, [input], { dim: integer(dim, 'logSoftmax dim'), log: true })
}
