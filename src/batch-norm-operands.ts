/**
 * The operands of batch norm for callers with their own gradients: tensors of this library, or plain typed arrays that
 * are borrowed for the call.
 */
import { argumentError, DTypeError } from './errors.ts'
import { native } from './native.ts'
import type { BindingArray, BindingTensor } from './native.ts'
import { describe, nativeOf, Tensor } from './tensor.ts'
import type { ArrayTensor, Device, TypedArray } from './types.ts'

/** What batch norm computes with. */
export type Floats = Float32Array | Float64Array

/** `input` as the native side borrows it. Throws unless it is float32 or float64 data with a shape. */
export function toBindingArray(input: ArrayTensor, what: string): BindingArray {
  if (typeof input !== 'object' || input === null || !Array.isArray(input.shape)) {
    throw argumentError(`${what}: expected a Tensor or { data, shape }, got ${describe(input)}`)
  }
  const { data, dtype, memoryFormat } = input
  const actual = data instanceof Float32Array ? 'float32' : data instanceof Float64Array ? 'float64' : null
  if (actual === null || (dtype !== undefined && dtype !== actual)) {
    const got = `${dtype ?? 'no dtype'} in a ${describe(data)}`
    throw new DTypeError(
      'ERR_DTYPE',
      `${what}: expected float32 in a Float32Array or float64 in a Float64Array, got ${got}`,
    )
  }
  return { data: data as Floats, shape: [...input.shape], memoryFormat: memoryFormat ?? 'contiguous' }
}

/** The data of a per-channel operand of an array input; null if there is none. */
export function channelArray(
  operand: ArrayTensor | TypedArray | Tensor | null | undefined,
  what: string,
): Floats | null {
  if (operand === null || operand === undefined) return null
  const data: unknown = ArrayBuffer.isView(operand) || operand instanceof Tensor ? operand : operand.data
  if (data instanceof Float32Array || data instanceof Float64Array) return data
  if (!ArrayBuffer.isView(data)) {
    throw argumentError(`${what}: expected a typed array, as the input is one, got ${describe(operand)}`)
  }
  throw new DTypeError('ERR_DTYPE', `${what}: expected a Float32Array or Float64Array, got ${describe(data)}`)
}

/**
 * A new array of `like`'s type for a result. Its memory is JavaScript's own and goes with it; it is not cleared first,
 * because every native function that takes it writes all of it or throws.
 */
export function newLike(like: Floats, length = like.length): Floats {
  const { buffer } = Buffer.allocUnsafeSlow(length * like.BYTES_PER_ELEMENT)
  return like instanceof Float32Array ? new Float32Array(buffer) : new Float64Array(buffer)
}

/**
 * A per-channel operand of a tensor input: a tensor, or a typed array that is copied to the input's device and, if written
 * to, back.
 */
export class ChannelOperand {
  readonly native: BindingTensor | null
  readonly #array: Floats | null

  constructor(operand: Tensor | TypedArray | ArrayTensor | null | undefined, what: string, device: Device) {
    this.#array = null
    if (operand === null || operand === undefined) this.native = null
    else if (operand instanceof Tensor) this.native = nativeOf(operand)
    else {
      this.#array = channelArray(operand, what) as Floats
      this.native = copyIn(this.#array, device)
    }
  }

  /** Copies what was written to the tensor into the caller's array. Waits for the device. */
  writeBack(): void {
    if (!this.#array || !this.native) return
    this.#array.set(native.tensorToArray(this.native, false) as Floats)
  }

  /** Drops the copy of an array. */
  release(): void {
    if (this.#array && this.native) native.tensorDispose(this.native)
  }
}

function copyIn(array: Floats, device: Device): BindingTensor {
  const dtype = array instanceof Float32Array ? 'float32' : 'float64'
  return native.tensorFromArray(array, [array.length], dtype, 'contiguous', device)
}

/** Runs `fn` with the named operands of a tensor input on `device`, and drops copies of arrays afterwards. */
export function withChannelOperands<N extends string, R>(
  device: Device,
  operands: Record<N, Tensor | TypedArray | ArrayTensor | null | undefined>,
  fn: (operands: Record<N, ChannelOperand>) => R,
): R {
  const opened: Partial<Record<N, ChannelOperand>> = {}
  try {
    for (const name of Object.keys(operands) as N[]) opened[name] = new ChannelOperand(operands[name], name, device)
    return fn(opened as Record<N, ChannelOperand>)
  } finally {
    for (const operand of Object.values(opened) as ChannelOperand[]) operand.release()
  }
}
