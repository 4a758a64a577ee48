/** Pooling modules: (N, C, H, W) → (N, C, H', W'). */
import { adaptiveAvgPool2d } from '../ops/adaptive-avg-pool2d.ts'
import { avgPool2d } from '../ops/avg-pool2d.ts'
import { maxPool2d } from '../ops/max-pool2d.ts'
import type { Pool2dOptions } from '../ops/pool2d.ts'
import { toPair } from '../ops/shape.ts'
import type { Tensor } from '../tensor.ts'
import type { Pair } from '../types.ts'
import { Module } from './module.ts'

/** Window, steps and padding, filled in. */
abstract class Pool2d extends Module {
  readonly kernelSize: [number, number]
  readonly stride: [number, number]
  readonly padding: [number, number]

  /** @param options `stride`: default the kernel's size. `padding`: default 0. */
  constructor(kernelSize: Pair, options: Pool2dOptions = {}) {
    super()
    this.kernelSize = toPair(kernelSize, 'kernelSize')
    this.stride = toPair(options.stride ?? kernelSize, 'stride')
    this.padding = toPair(options.padding ?? 0, 'padding')
  }
}

/** The largest value of each window. */
export class MaxPool2d extends Pool2d {
  override forward(input: Tensor): Tensor {
    return maxPool2d(input, this.kernelSize, { stride: this.stride, padding: this.padding })
  }
}

/** The mean of each window; padding counts as zeros. */
export class AvgPool2d extends Pool2d {
  override forward(input: Tensor): Tensor {
    return avgPool2d(input, this.kernelSize, { stride: this.stride, padding: this.padding })
  }
}

/** Means over windows that divide the image evenly into `outputSize`. */
export class AdaptiveAvgPool2d extends Module {
  readonly outputSize: [number, number]

  constructor(outputSize: Pair) {
    super()
    this.outputSize = toPair(outputSize, 'AdaptiveAvgPool2d outputSize')
  }

  override forward(input: Tensor): Tensor {
    return adaptiveAvgPool2d(input, this.outputSize)
  }
}
