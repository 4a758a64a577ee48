/** Functions that make tensors. */
import { checkFloating, toDevice } from './device.ts'
import { argumentError, DTypeError } from './errors.ts'
import { native } from './native.ts'
import type { BindingTensor } from './native.ts'
import { flatten } from './nested-array.ts'
import { toShape } from './ops/shape.ts'
import { wrap } from './tensor.ts'
import type { Tensor } from './tensor.ts'
import type { Device, DType, MemoryFormat, NestedArray, Shape, TensorOptions, TypedArray } from './types.ts'

/**
 * A tensor with a copy of `data` on `options.device`: a number, nested arrays of equal lengths, or a typed array in row-major order.
 *
 * @param options `shape`: default the nesting, or [length] of a typed array. `dtype`: default that of a typed array,
 *   int64 for bigints, else float32; a Uint16Array is the raw bits of float16 or bfloat16 and needs it.
 * @throws ShapeError for nested arrays of unequal lengths and for a shape with another number of elements; DTypeError
 *   for a Uint16Array without a half dtype; ArgumentError for elements that are not numbers;
 *   DeviceError for a device that is not there.
 */
export function tensor(
  data: number | NestedArray | TypedArray,
  options: TensorOptions & { shape?: Shape } = {},
): Tensor {
  const flat = ArrayBuffer.isView(data)
    ? { data, shape: [data.length], dtype: typedArrayDType(data, options) }
    : flatten(data)
  const shape = options.shape ?? flat.shape
  return make(options, flat.dtype, ({ dtype, memoryFormat, device }) =>
    native.tensorFromArray(flat.data, toShape(shape, 'tensor'), dtype, memoryFormat, device),
  )
}

function typedArrayDType(data: TypedArray, { dtype }: TensorOptions): DType {
  if (data instanceof Float32Array) return 'float32'
  if (data instanceof Float64Array) return 'float64'
  if (data instanceof Int32Array) return 'int32'
  if (data instanceof BigInt64Array) return 'int64'
  if (!(data instanceof Uint16Array)) {
    const expected = 'a Float32Array, Float64Array, Int32Array, BigInt64Array or Uint16Array'
    throw new DTypeError('ERR_DTYPE', `tensor: expected ${expected}, got ${(data as object).constructor.name}`)
  }
  if (dtype === 'float16' || dtype === 'bfloat16') return dtype
  const expected = "dtype 'float16' or 'bfloat16' for the raw bits in a Uint16Array"
  throw new DTypeError('ERR_DTYPE', `tensor: expected ${expected}, got ${dtype ?? 'none'}`)
}

interface Place {
  readonly dtype: DType
  readonly memoryFormat: MemoryFormat
  readonly device: Device
}

/** Checks the options, then makes the tensor. */
function make(options: TensorOptions, defaultDType: DType, create: (place: Place) => BindingTensor): Tensor {
  const dtype = options.dtype ?? defaultDType
  const device = toDevice(options.device, 'tensor')
  if (options.requiresGrad) checkFloating(dtype, 'requiresGrad')
  const result = wrap(create({ dtype, memoryFormat: options.memoryFormat ?? 'contiguous', device }))
  result.requiresGrad = options.requiresGrad ?? false
  return result
}

/** A tensor of zeros. Default dtype: float32. */
export function zeros(shape: Shape, options: TensorOptions = {}): Tensor {
  return full(shape, 0, options)
}

/** A tensor of ones. Default dtype: float32. */
export function ones(shape: Shape, options: TensorOptions = {}): Tensor {
  return full(shape, 1, options)
}

/** A tensor whose every element is `value`. Default dtype: float32. */
export function full(shape: Shape, value: number, options: TensorOptions = {}): Tensor {
  return make(options, 'float32', ({ dtype, memoryFormat, device }) =>
    native.tensorFull(toShape(shape, 'full'), value, dtype, memoryFormat, device),
  )
}

/**
 * Standard normal values from this thread's generator: the numbers of PyTorch's CPU generator for its seed, on every
 * device. Default dtype: float32.
 */
export function randn(shape: Shape, options: TensorOptions = {}): Tensor {
  return make(options, 'float32', ({ dtype, memoryFormat, device }) =>
    native.tensorRandn(toShape(shape, 'randn'), dtype, memoryFormat, device),
  )
}

/**
 * Uniform values in [0, 1) from this thread's generator: the numbers of PyTorch's CPU generator for its seed, on every
 * device. Default dtype: float32.
 */
export function rand(shape: Shape, options: TensorOptions = {}): Tensor {
  return make(options, 'float32', ({ dtype, memoryFormat, device }) =>
    native.tensorRand(toShape(shape, 'rand'), dtype, memoryFormat, device),
  )
}

/** 0, 1, … up to but not including `end`. Default dtype: int64. */
export function arange(end: number, options: TensorOptions = {}): Tensor {
  return make(options, 'int64', ({ dtype, device }) => native.tensorArange(end, dtype, device))
}

/** Seeds this thread's generator, from which rand, randn, permutations and initial parameters are drawn. */
export function manualSeed(seed: number | bigint): void {
  if (typeof seed !== 'bigint' && !Number.isSafeInteger(seed)) {
    throw argumentError(`manualSeed: expected an integer, got ${String(seed)}`)
  }
  native.manualSeed(BigInt(seed))
}
