/** Fully connected layers. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf, nativeOrNull } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { matmulTransposed } from './matmul.ts'
import { reshapeIfNeeded } from './reshape.ts'
import { countElements } from './shape.ts'
import { sum } from './sum.ts'

const operation: Operation<undefined> = {
  name: 'linear',
  forward(context, [x, weight, bias]) {
    const result = native.linear(nativeOf(x as Tensor), nativeOf(weight as Tensor), nativeOrNull(bias))
    context.save(context.needs[1] ? (x as Tensor) : null, context.needs[0] ? (weight as Tensor) : null)
    return [result]
  },
  backward({ needs, savedTensors }, [gradient]) {
    const [x, weight] = savedTensors as [Tensor, Tensor]
    const rows = asRows(gradient as Tensor)
    return [
      needs[0] ? gradInput(gradient as Tensor, rows, weight) : null,
      needs[1] ? matmulTransposed(rows, asRows(x), true, false) : null,
      needs[2] ? sum(rows, [0]) : null,
    ]
  },
}

function gradInput(gradient: Tensor, rows: Tensor, weight: Tensor): Tensor {
  const features = weight.shape[1] as number
  return reshapeIfNeeded(matmulTransposed(rows, weight, false, false), [...gradient.shape.slice(0, -1), features])
}

/** (…, n) as a matrix of rows. */
function asRows(x: Tensor): Tensor {
  return reshapeIfNeeded(x, [countElements(x.shape.slice(0, -1)), x.shape.at(-1) as number])
}

/**
 * input · weightᵀ + bias.
 *
 * @param input (…, inFeatures), float32 or float64
 * @param weight (outFeatures, inFeatures), of the input's dtype
 * @param bias (outFeatures), of the input's dtype. Default: none.
 * @returns (…, outFeatures)
 */
export function linear(input: Tensor, weight: Tensor, bias: Tensor | null = null): Tensor {
  return applySingle(operation, [input, weight, bias], undefined)
}
