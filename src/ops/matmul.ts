/** Matrix products. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { ShapeError } from '../errors.ts'
import { native } from '../native.ts'
import { runScope } from '../scope.ts'
import { nativeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { reshape, reshapeIfNeeded } from './reshape.ts'
import { broadcastShapes, countElements } from './shape.ts'
import { expand } from './sum-to.ts'

interface Transposes {
  readonly a: boolean
  readonly b: boolean
}

interface Options extends Transposes {
  /** Several matrices A, one B; only without transposing A. */
  readonly oneForAll: boolean
}

/** Products of matrices, each transposed first if asked for: (…, m, k) × (k, n), or × (…, k, n) of the same leading. */
const operation: Operation<Options> = {
  name: 'matmul',
  forward(context, inputs, transpose) {
    const [a, b] = inputs as [Tensor, Tensor]
    const result = native.matmul(nativeOf(a), nativeOf(b), transpose.a, transpose.b)
    context.save(context.needs[1] ? a : null, context.needs[0] ? b : null)
    return [result]
  },
  backward({ needs, savedTensors }, [gradient], transpose) {
    const [a, b] = savedTensors as [Tensor, Tensor]
    const g = gradient as Tensor
    return [needs[0] ? gradA(g, b, transpose) : null, needs[1] ? gradB(g, a, transpose, transpose.oneForAll) : null]
  },
}

/** dA = dC · op(B)ᵀ, itself transposed where A was. */
function gradA(gradient: Tensor, b: Tensor, transpose: Transposes): Tensor {
  return transpose.a ? product(b, gradient, transpose.b, true) : product(gradient, b, false, !transpose.b)
}

/** dB = op(A)ᵀ · dC, itself transposed where B was; summed over the matrices A if there is one B for all. */
function gradB(gradient: Tensor, a: Tensor, transpose: Transposes, oneForAll: boolean): Tensor {
  const g = oneForAll ? asMatrix(gradient) : gradient
  const left = oneForAll ? asMatrix(a) : a
  return transpose.b ? product(g, left, true, transpose.a) : product(left, g, !transpose.a, false)
}

function asMatrix(x: Tensor): Tensor {
  const columns = x.shape.at(-1) ?? 1
  return reshapeIfNeeded(x, [countElements(x.shape.slice(0, -1)), columns])
}

function product(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean): Tensor {
  const oneForAll = a.shape.length > 2 && b.shape.length === 2
  return applySingle(operation, [a, b], { a: transposeA, b: transposeB, oneForAll })
}

/** op(a) · op(b) of two matrices, each transposed first if asked for. */
export function matmulTransposed(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean): Tensor {
  return product(a, b, transposeA, transposeB)
}

/** See `Tensor.matmul`. Vectors count as one row on the left and as one column on the right. */
export function matmul(a: Tensor, b: Tensor): Tensor {
  if (a.shape.length === 0 || b.shape.length === 0) {
    const message = `matmul: expected at least 1 dimension, got shapes [${a.shape.join(', ')}] and [${b.shape.join(', ')}]`
    throw new ShapeError('ERR_SHAPE', message)
  }
  return runScope(() => matmulVectors(a, b))
}

function matmulVectors(a: Tensor, b: Tensor): Tensor {
  const left = a.shape.length === 1 ? reshape(a, [1, a.numel]) : a
  const right = b.shape.length === 1 ? reshape(b, [b.numel, 1]) : b
  const result = matmulBatched(left, right)
  const shape = [...result.shape]
  if (b.shape.length === 1) shape.splice(-1, 1)
  if (a.shape.length === 1) shape.splice(b.shape.length === 1 ? -1 : -2, 1)
  return reshapeIfNeeded(result, shape)
}

function matmulBatched(a: Tensor, b: Tensor): Tensor {
  if (b.shape.length === 2) return product(a, b, false, false)
  const leading = broadcastShapes(a.shape.slice(0, -2), b.shape.slice(0, -2), 'matmul')
  const left = expand(a, [...leading, ...a.shape.slice(-2)])
  const right = expand(b, [...leading, ...b.shape.slice(-2)])
  return product(left, right, false, false)
}
