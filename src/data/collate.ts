/** How samples become a batch when the user does not say. */
import { argumentError } from '../errors.ts'
import { native } from '../native.ts'
import type { BindingTensor } from '../native.ts'
import { nativeOf, Tensor, wrap } from '../tensor.ts'
import type { TypedArray } from '../types.ts'

/**
 * Joins samples of equal structure:
 *
 * - tensors of one shape and dtype: a tensor with a new first dimension; typed arrays the same way
 * - numbers: a tensor (N), int64 if all are whole numbers, else float32; bigints: int64
 * - arrays: an array of the batches of their elements; plain objects: an object of the batches of their fields
 * - strings, booleans and null: an array of them
 *
 * @throws ArgumentError when samples differ in structure; ShapeError, DTypeError when their tensors differ
 */
export function defaultCollate(samples: readonly unknown[]): unknown {
  const [first] = samples
  if (first instanceof Tensor) return stack(all(samples, isTensor, 'tensors'))
  if (typeof first === 'number') return stackNumbers(all(samples, isNumber, 'numbers'))
  if (typeof first === 'bigint') return stackBigints(all(samples, isBigint, 'bigints'))
  if (isTypedArray(first)) return stackArrays(all(samples, isTypedArray, 'typed arrays'))
  if (Array.isArray(first)) return collateArrays(all(samples, Array.isArray, 'arrays'), first.length)
  if (isPlainObject(first)) return collateObjects(all(samples, isPlainObject, 'objects'), Object.keys(first))
  if (first === null || typeof first === 'string' || typeof first === 'boolean') return [...samples]
  throw argumentError(`no rule for joining samples of type ${typeof first}: give the loader a collate function`)
}

function stack(tensors: readonly Tensor[]): Tensor {
  return wrap(native.tensorStack(tensors.map(nativeOf)))
}

function stackNumbers(numbers: readonly number[]): Tensor {
  if (numbers.every(Number.isSafeInteger)) return stackBigints(numbers.map(BigInt))
  return wrap(fromArray(Float32Array.from(numbers), 'float32'))
}

function stackBigints(values: readonly bigint[]): Tensor {
  return wrap(fromArray(BigInt64Array.from(values), 'int64'))
}

function stackArrays(arrays: readonly TypedArray[]): Tensor {
  const [{ length }, dtype] = [arrays[0] as TypedArray, dtypeOf(arrays[0] as TypedArray)]
  if (arrays.some((array) => array.length !== length || dtypeOf(array) !== dtype)) {
    throw argumentError('the typed arrays of a batch must have one type and one length')
  }
  const rows = arrays.map((array) => fromArray(array, dtype))
  try {
    return wrap(native.tensorStack(rows))
  } finally {
    rows.forEach((row) => native.tensorDispose(row))
  }
}

/** A batch is made on the CPU; the trainer moves it to where it computes. */
function fromArray(array: TypedArray, dtype: string): BindingTensor {
  return native.tensorFromArray(array, [array.length], dtype, 'contiguous', 'cpu')
}

function dtypeOf(array: TypedArray): string {
  if (array instanceof Float32Array) return 'float32'
  if (array instanceof Float64Array) return 'float64'
  if (array instanceof Int32Array) return 'int32'
  if (array instanceof BigInt64Array) return 'int64'
  throw argumentError('a Uint16Array may be float16 or bfloat16: make a tensor of it in the dataset')
}

function collateArrays(arrays: ReadonlyArray<readonly unknown[]>, length: number): unknown[] {
  if (arrays.some((array) => array.length !== length)) {
    throw argumentError(
      `the arrays of a batch must have one length, got ${arrays.map((array) => array.length).join(', ')}`,
    )
  }
  return Array.from({ length }, (_, i) => defaultCollate(arrays.map((array) => array[i])))
}

function collateObjects(objects: ReadonlyArray<Record<string, unknown>>, keys: readonly string[]): unknown {
  for (const object of objects) {
    if (Object.keys(object).length === keys.length && keys.every((key) => key in object)) continue
    throw argumentError(`the objects of a batch must have the same fields, got {${keys}} and {${Object.keys(object)}}`)
  }
  return Object.fromEntries(keys.map((key) => [key, defaultCollate(objects.map((object) => object[key]))]))
}

function all<T>(samples: readonly unknown[], is: (value: unknown) => value is T, what: string): readonly T[] {
  if (samples.every(is)) return samples
  throw argumentError(`the samples of a batch must be of one kind; the first has ${what} where another has not`)
}

const isTensor = (value: unknown): value is Tensor => value instanceof Tensor
const isNumber = (value: unknown): value is number => typeof value === 'number'
const isBigint = (value: unknown): value is bigint => typeof value === 'bigint'

function isTypedArray(value: unknown): value is TypedArray {
  return [Float32Array, Float64Array, Int32Array, BigInt64Array, Uint16Array].some((type) => value instanceof type)
}

/** Whether a value is an object that was written as one, and no instance of a class. */
export function isPlainObject(value: unknown): value is Record<string, unknown> {
  if (typeof value !== 'object' || value === null) return false
  const prototype: unknown = Object.getPrototypeOf(value)
  return prototype === Object.prototype || prototype === null
}
