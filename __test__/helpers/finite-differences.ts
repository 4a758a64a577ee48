/** Derivatives by central differences in float64. */
import { grad, noGrad, tensor, type Tensor } from 'syncbn'
import { toNumbers } from './closeness.ts'

const STEP = 1e-5

/** A fresh float64 leaf like `input`. */
function leaf(values: number[], { shape, device }: Tensor): Tensor {
  return tensor(Float64Array.from(values), { shape, device, requiresGrad: true })
}

/**
 * Largest difference between the gradient of Σ weights·fn(inputs) and central differences of it, over all elements of all
 * inputs.
 */
export function gradientError(fn: (...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[]): number {
  const leaves = inputs.map((input) => leaf(toNumbers(input), input))
  const output = fn(...leaves)
  const weights = toNumbers(output).map((_, i) => Math.sin(1.7 * i + 0.3))
  const gradOutputs = [tensor(Float64Array.from(weights), { shape: output.shape, device: output.device })]
  const gradients = grad(output, leaves, { gradOutputs })
  const evaluate = (values: number[][]): number => {
    const outputs = noGrad(() => toNumbers(fn(...values.map((value, i) => leaf(value, inputs[i]!)))))
    return outputs.reduce((sum, value, i) => sum + value * weights[i]!, 0)
  }
  let largest = 0
  const values = inputs.map(toNumbers)
  gradients.forEach((gradient, input) => {
    toNumbers(gradient).forEach((analytic, i) => {
      const shifted = (by: number) => values.map((v, k) => (k === input ? v.with(i, v[i]! + by) : v))
      const numeric = (evaluate(shifted(STEP)) - evaluate(shifted(-STEP))) / (2 * STEP)
      const difference = Math.abs(analytic - numeric)
      if (!(difference <= largest)) largest = difference
    })
  })
  return largest
}
