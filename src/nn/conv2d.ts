/** Two-dimensional convolution layer. */
import { argumentError } from '../errors.ts'
import { conv2d } from '../ops/conv2d.ts'
import { toPair } from '../ops/shape.ts'
import type { Tensor } from '../tensor.ts'
import { positiveInteger, toFactory } from './arguments.ts'
import type { FactoryOptions } from './arguments.ts'
import { kaimingUniformWeight, uniformBias } from './init.ts'
import { Module } from './module.ts'

/** Options of Conv2d. */
export interface Conv2dModuleOptions extends FactoryOptions {
  /** Steps of the kernel. Default: 1. */
  stride?: number | [number, number]
  /** Zeros added on each side. Default: 0. */
  padding?: number | [number, number]
  /** Blocks of channels that do not see each other; divides both channel numbers. Default: 1. */
  groups?: number
  /** Default: true. */
  bias?: boolean
}

/** Cross-correlation with learnable kernels: (N, inChannels, H, W) → (N, outChannels, H', W'). */
export class Conv2d extends Module {
  readonly inChannels: number
  readonly outChannels: number
  readonly kernelSize: [number, number]
  readonly stride: [number, number]
  readonly padding: [number, number]
  readonly groups: number
  /** (outChannels, inChannels / groups, KH, KW), uniform within ±1/√(KH·KW·inChannels / groups) at first. */
  weight: Tensor
  /** (outChannels), uniform within the same bounds at first; null with `bias: false`. */
  bias: Tensor | null

  constructor(
    inChannels: number,
    outChannels: number,
    kernelSize: number | [number, number],
    options: Conv2dModuleOptions = {},
  ) {
    super()
    const factory = toFactory(options, 'Conv2d')
    this.inChannels = positiveInteger(inChannels, 'Conv2d inChannels')
    this.outChannels = positiveInteger(outChannels, 'Conv2d outChannels')
    this.groups = positiveInteger(options.groups ?? 1, 'Conv2d groups')
    if (inChannels % this.groups !== 0 || outChannels % this.groups !== 0) {
      const message = `Conv2d: expected groups to divide ${inChannels} and ${outChannels} channels, got ${this.groups}`
      throw argumentError(message)
    }
    this.kernelSize = toPair(kernelSize, 'Conv2d kernelSize')
    this.kernelSize.forEach((size) => positiveInteger(size, 'Conv2d kernelSize'))
    this.stride = toPair(options.stride ?? 1, 'Conv2d stride')
    this.stride.forEach((step) => positiveInteger(step, 'Conv2d stride'))
    this.padding = toPair(options.padding ?? 0, 'Conv2d padding')
    const shape = [outChannels, inChannels / this.groups, ...this.kernelSize]
    this.weight = kaimingUniformWeight(shape, factory)
    this.bias = (options.bias ?? true) ? uniformBias(shape, factory) : null
  }

  override forward(input: Tensor): Tensor {
    const { stride, padding, groups } = this
    return conv2d(input, this.weight, this.bias, { stride, padding, groups })
  }
}
