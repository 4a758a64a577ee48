/** Initial values, drawn from this thread's generator in PyTorch's order, on the CPU: they are the same on every device. */
import { native } from '../native.ts'
import type { BindingTensor } from '../native.ts'
import { wrap } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { countElements } from '../ops/shape.ts'
import type { Shape } from '../types.ts'
import type { FactoryOptions } from './arguments.ts'
import { parameter } from './parameter.ts'

type Factory = Required<FactoryOptions>

/**
 * A weight of Linear or Conv2d: Kaiming uniform with a = √5, as PyTorch's reset_parameters: gain √(2 / (1 + a²)), bound
 * √3 · gain / √fanIn. (He et al., "Delving deep into rectifiers", 2015.)
 */
export function kaimingUniformWeight(shape: Shape, factory: Factory): Tensor {
  const gain = Math.sqrt(2 / (1 + Math.sqrt(5) ** 2))
  return uniformParameter(shape, Math.sqrt(3) * (gain / Math.sqrt(fanIn(shape))), factory)
}

/** The bias that belongs to a weight of `weightShape`: uniform within ±1/√fanIn. */
export function uniformBias(weightShape: Shape, factory: Factory): Tensor {
  return uniformParameter([weightShape[0] as number], 1 / Math.sqrt(fanIn(weightShape)), factory)
}

/** Inputs that one output is computed from. */
function fanIn(weightShape: Shape): number {
  return countElements(weightShape.slice(1))
}

/** A parameter uniform in [−bound, bound). */
function uniformParameter(shape: Shape, bound: number, { dtype, device }: Factory): Tensor {
  const uniform = native.tensorRand([...shape], dtype, 'contiguous', 'cpu')
  const scaled = consume(uniform, (tensor) => native.binaryScalar('mul', tensor, 2 * bound))
  const shifted = consume(scaled, (tensor) => native.binaryScalar('sub', tensor, bound))
  return parameter(wrap(consume(shifted, (tensor) => native.tensorTo(tensor, null, null, device))))
}

/** The result of `fn`, whose operand is no longer needed. */
function consume(tensor: BindingTensor, fn: (tensor: BindingTensor) => BindingTensor): BindingTensor {
  try {
    return fn(tensor)
  } finally {
    native.tensorDispose(tensor)
  }
}
