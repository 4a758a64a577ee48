/** The types of the public surface that belong to no single class. */
import type { Tensor } from './tensor.ts'

/** Element type. */
export type DType = 'float32' | 'float64' | 'float16' | 'bfloat16' | 'int32' | 'int64'

/** Where a tensor's memory is, and is computed on: the CPU, or the GPU of an index. */
export type Device = 'cpu' | `cuda:${number}`

/** Order of the dimensions in memory: as in the shape, or with the channels (dimension 1) last. */
export type MemoryFormat = 'contiguous' | 'channelsLast' | 'channelsLast3d'

/** float32, float64, int32, int64, and the raw bits of float16 or bfloat16. */
export type TypedArray = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint16Array

/** Sizes, outermost first. */
export type Shape = readonly number[]

/** Numbers or bigints in arrays of equal lengths. */
export type NestedArray = ReadonlyArray<number | bigint | NestedArray>

/** How a tensor is made. */
export interface TensorOptions {
  /** Default: float32, or the element type of the data. */
  dtype?: DType
  /** Default: 'cpu'. */
  device?: Device
  /** Default: 'contiguous'. */
  memoryFormat?: MemoryFormat
  /** Default: false. */
  requiresGrad?: boolean
}

/** What `to` of a tensor or module takes. */
export type ConversionTarget = Device | DType | { device?: Device; dtype?: DType; memoryFormat?: MemoryFormat }

/** Plain typed arrays as a tensor. The data is in the order of `memoryFormat` and is borrowed, never copied. */
export type ArrayTensor<A extends TypedArray = TypedArray> = {
  data: A
  shape: Shape
  dtype?: DType
  memoryFormat?: MemoryFormat
}

/** What becomes of the losses of a batch. */
export type Reduction = 'none' | 'sum' | 'mean'

/** A size for height and width, or one for both. */
export type Pair = number | readonly [number, number]

/** The options of batch normalization on tensors or arrays `T`; each of C values. */
export interface BatchNormArguments<T> {
  /** Default: none, as if all were 1. */
  weight?: T | null
  /** Default: none, as if all were 0. */
  bias?: T | null
  /** Updated in place when training; the mean that is used otherwise. */
  runningMean?: T | null
  /** Updated in place when training, with the unbiased variance; the variance that is used otherwise. */
  runningVar?: T | null
  /** Whether the statistics of this batch are used. */
  training?: boolean
  /** Weight of the new value in the running statistics. Default: 0.1. */
  momentum?: number
  /** Added to the variance; positive. Default: 1e-5. */
  eps?: number
}

/** Per-channel statistics of `count` values: their mean and the sum of squared differences from it. */
export interface ChannelStats {
  /** Values per channel. */
  count: number
  /** C means. */
  mean: Float64Array
  /** C sums of squared differences from the mean. */
  m2: Float64Array
}

/** A user-defined operation's memory between forward and backward. */
export interface FunctionContext {
  /** Keeps tensors for backward; changing one in place before then is an error. */
  saveForBackward(...tensors: Tensor[]): void
  /** What was saved, in backward only. */
  readonly savedTensors: Tensor[]
  [key: string]: unknown
}
