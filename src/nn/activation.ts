/** Modules without parameters that change values or shapes. */
import { relu } from '../ops/relu.ts'
import { flatten } from '../ops/reshape.ts'
import type { Tensor } from '../tensor.ts'
import { Module } from './module.ts'

/** max(input, 0) elementwise. */
export class ReLU extends Module {
  override forward(input: Tensor): Tensor {
    return relu(input)
  }
}

/** Returns its input. */
export class Identity extends Module {
  override forward(input: Tensor): Tensor {
    return input
  }
}

/** Joins the dimensions from `startDim` to `endDim`, both included; negative ones count from the end. */
export class Flatten extends Module {
  readonly startDim: number
  readonly endDim: number

  /** @param options `startDim`: default 1, after the batch. `endDim`: default −1, the last. */
  constructor(options: { startDim?: number; endDim?: number } = {}) {
    super()
    this.startDim = options.startDim ?? 1
    this.endDim = options.endDim ?? -1
  }

  override forward(input: Tensor): Tensor {
    return flatten(input, this.startDim, this.endDim)
  }
}
