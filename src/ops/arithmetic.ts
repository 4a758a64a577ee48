/** Elementwise arithmetic with broadcasting: add, sub, mul, div of two tensors, or of a tensor and a number. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { argumentError } from '../errors.ts'
import { native } from '../native.ts'
import { describe, nativeOf, Tensor } from '../tensor.ts'
import type { Shape } from '../types.ts'
import { sumTo } from './sum-to.ts'

type Name = 'add' | 'sub' | 'mul' | 'div'

interface Shapes {
  readonly a: Shape
  readonly b: Shape
}

/** (a, b, their gradients' upstream) → the gradient of a and of b, before broadcasting is undone. */
interface BinaryOperation {
  /** Which operands backward reads. */
  readonly saves: boolean
  gradA(gradient: Tensor, a: Tensor, b: Tensor): Tensor
  gradB(gradient: Tensor, a: Tensor, b: Tensor): Tensor
}

const BINARY: Record<Name, BinaryOperation> = {
  add: { saves: false, gradA: (g) => g, gradB: (g) => g },
  sub: { saves: false, gradA: (g) => g, gradB: (g) => mul(g, -1) },
  mul: { saves: true, gradA: (g, _a, b) => mul(g, b), gradB: (g, a) => mul(g, a) },
  div: { saves: true, gradA: (g, _a, b) => div(g, b), gradB: (g, a, b) => mul(div(mul(g, div(a, b)), b), -1) },
}

function binaryOperation(name: Name): Operation<Shapes> {
  const definition = BINARY[name]
  return {
    name,
    forward(context, inputs) {
      const [a, b] = inputs as [Tensor, Tensor]
      const result = native.binary(name, nativeOf(a), nativeOf(b))
      if (definition.saves) context.save(a, b)
      return [result]
    },
    backward({ needs, savedTensors }, [gradient], shapes) {
      const [a, b] = savedTensors as [Tensor, Tensor]
      const g = gradient as Tensor
      return [
        needs[0] ? sumTo(definition.gradA(g, a, b), shapes.a) : null,
        needs[1] ? sumTo(definition.gradB(g, a, b), shapes.b) : null,
      ]
    },
  }
}

/** a ∘ number; the gradient is scaled by the same number for mul and div. */
function scalarOperation(name: Name): Operation<number> {
  return {
    name,
    forward: (_context, [a], scalar) => [native.binaryScalar(name, nativeOf(a as Tensor), scalar)],
    backward(_context, [gradient], scalar) {
      return [name === 'mul' || name === 'div' ? apply(name, gradient as Tensor, scalar) : (gradient as Tensor)]
    },
  }
}

const OPERATIONS = {
  add: { binary: binaryOperation('add'), scalar: scalarOperation('add') },
  sub: { binary: binaryOperation('sub'), scalar: scalarOperation('sub') },
  mul: { binary: binaryOperation('mul'), scalar: scalarOperation('mul') },
  div: { binary: binaryOperation('div'), scalar: scalarOperation('div') },
}

function apply(name: Name, a: Tensor, other: Tensor | number): Tensor {
  if (typeof other === 'number') return applySingle(OPERATIONS[name].scalar, [a], other)
  if (!(other instanceof Tensor)) throw argumentError(`${name}: expected a Tensor or a number, got ${describe(other)}`)
  return applySingle(OPERATIONS[name].binary, [a, other], { a: a.shape, b: other.shape })
}

/** a + b, broadcast. */
export function add(a: Tensor, b: Tensor | number): Tensor {
  return apply('add', a, b)
}

/** a − b, broadcast. */
export function sub(a: Tensor, b: Tensor | number): Tensor {
  return apply('sub', a, b)
}

/** a · b elementwise, broadcast. */
export function mul(a: Tensor, b: Tensor | number): Tensor {
  return apply('mul', a, b)
}

/** a / b elementwise, broadcast. */
export function div(a: Tensor, b: Tensor | number): Tensor {
  return apply('div', a, b)
}
