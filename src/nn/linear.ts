/** Fully connected layer. */
import { linear } from '../ops/linear.ts'
import type { Tensor } from '../tensor.ts'
import { positiveInteger, toFactory } from './arguments.ts'
import type { FactoryOptions } from './arguments.ts'
import { kaimingUniformWeight, uniformBias } from './init.ts'
import { Module } from './module.ts'

/** input · weightᵀ + bias: (…, inFeatures) → (…, outFeatures). */
export class Linear extends Module {
  readonly inFeatures: number
  readonly outFeatures: number
  /** (outFeatures, inFeatures), uniform within ±1/√inFeatures at first. */
  weight: Tensor
  /** (outFeatures), uniform within ±1/√inFeatures at first; null with `bias: false`. */
  bias: Tensor | null

  /** @param options `bias`: default true. `dtype`: default 'float32'. `device`: default 'cpu'. */
  constructor(inFeatures: number, outFeatures: number, options: FactoryOptions & { bias?: boolean } = {}) {
    super()
    const factory = toFactory(options, 'Linear')
    this.inFeatures = positiveInteger(inFeatures, 'Linear inFeatures')
    this.outFeatures = positiveInteger(outFeatures, 'Linear outFeatures')
    const shape = [outFeatures, inFeatures]
    this.weight = kaimingUniformWeight(shape, factory)
    this.bias = (options.bias ?? true) ? uniformBias(shape, factory) : null
  }

  override forward(input: Tensor): Tensor {
    return linear(input, this.weight, this.bias)
  }
}
