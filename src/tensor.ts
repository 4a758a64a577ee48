/**
 * The tensor: a reference on native memory with a shape, a dtype and a place in the gradient graph.
 *
 * Methods that compute are one line each: the operation is in src/ops, the arithmetic in the native library.
 */
import { accumulateLater, gradientOf, replaceGradient } from './autograd/leaf.ts'
import { backward } from './autograd/engine.ts'
import { checkWritable } from './autograd/grad-mode.ts'
import type { Edge } from './autograd/node.ts'
import { checkFloating, cudaIndex, parseConversion, toDevice } from './device.ts'
import { argumentError, DeviceError, makeError } from './errors.ts'
import { holdOwner } from './foreign-memory.ts'
import { Handle } from './handle.ts'
import type { TensorInfo } from './handle.ts'
import { native } from './native.ts'
import type { BindingTensor } from './native.ts'
import { add, div, mul, sub } from './ops/arithmetic.ts'
import { argmax } from './ops/argmax.ts'
import { clone } from './ops/clone.ts'
import { convert } from './ops/convert.ts'
import { matmul } from './ops/matmul.ts'
import { reshape } from './ops/reshape.ts'
import { toShape } from './ops/shape.ts'
import { mean, sum } from './ops/sum.ts'
import { track } from './scope.ts'
import { TensorState } from './tensor-state.ts'
import type { ConversionTarget, Device, DType, MemoryFormat, Shape, TypedArray } from './types.ts'

let readState: (tensor: Tensor) => TensorState

/** A dense n-dimensional array. Made by `tensor`, `zeros`, `ones`, `full`, `rand`, `randn`, `arange` and operations. */
export class Tensor implements Disposable {
  readonly #state: TensorState

  static {
    readState = (tensor) => tensor.#state
  }

  /** @internal */
  constructor(state: TensorState) {
    if (!(state instanceof TensorState)) {
      throw argumentError(
        'Tensor: expected to be made by tensor(), zeros(), ones(), full(), rand(), randn() or arange()',
      )
    }
    this.#state = state
  }

  /** Sizes, outermost first; [] for a single number. */
  get shape(): Shape {
    return infoOf(this).shape
  }

  /** Element type. */
  get dtype(): DType {
    return infoOf(this).dtype
  }

  /** Where the memory is, and is computed on. */
  get device(): Device {
    return infoOf(this).device
  }

  /** Order of the dimensions in memory. */
  get memoryFormat(): MemoryFormat {
    return infoOf(this).memoryFormat
  }

  /** Number of elements. */
  get numel(): number {
    return infoOf(this).numel
  }

  /** Whether `dispose` was called, by hand or by a scope. */
  get disposed(): boolean {
    return this.#state.handle === null
  }

  /**
   * Whether operations on this tensor are recorded for backward. Settable on leaves: tensors that no recorded operation
   * made.
   *
   * @throws DTypeError when set on an integer tensor; ArgumentError when unset on a tensor that is not a leaf.
   */
  get requiresGrad(): boolean {
    return this.#state.requiresGrad || this.#state.history !== null
  }

  set requiresGrad(value: boolean) {
    if (value) checkFloating(this.dtype, 'requiresGrad')
    if (this.#state.history === null) this.#state.requiresGrad = value
    else if (!value) throw argumentError('requiresGrad: expected a leaf, got the result of an operation; use detach()')
  }

  /**
   * The gradient that backward passes have added up, of this leaf's shape and dtype; null before the first and after
   * `zeroGrad`. Assign null or a tensor of the same shape and dtype.
   */
  get grad(): Tensor | null {
    this.#state.gradExposed = true
    return gradientOf(this)
  }

  set grad(gradient: Tensor | null) {
    replaceGradient(this, gradient)
  }

  /**
   * This tensor on another device, in another dtype or memory format; on this one's storage if nothing changes.
   * Differentiable: the gradient comes back to where this tensor is. From a GPU to the CPU waits for the GPU.
   *
   * @throws DeviceError for a device that is not there.
   */
  to(target: ConversionTarget): Tensor {
    return convert(this, parseConversion(target, 'to'))
  }

  /** The same storage without the gradient graph. */
  detach(): Tensor {
    return track(share(this, null))
  }

  /** A copy with storage of its own. Differentiable. */
  clone(): Tensor {
    return clone(this)
  }

  /** The same elements in row-major order under another shape; one size may be −1. Shares storage where it can. */
  reshape(shape: Shape): Tensor {
    return reshape(this, shape)
  }

  /** this + other, broadcast. float32 or float64 (on a GPU also the half types), both of one dtype. */
  add(other: Tensor | number): Tensor {
    return add(this, other)
  }

  /** this − other, broadcast. float32 or float64 (on a GPU also the half types), both of one dtype. */
  sub(other: Tensor | number): Tensor {
    return sub(this, other)
  }

  /** this · other elementwise, broadcast. float32 or float64 (on a GPU also the half types), both of one dtype. */
  mul(other: Tensor | number): Tensor {
    return mul(this, other)
  }

  /** this / other elementwise, broadcast. float32 or float64 (on a GPU also the half types), both of one dtype. */
  div(other: Tensor | number): Tensor {
    return div(this, other)
  }

  /** The matrix product over the last two dimensions, leading ones broadcast: (…, m, k) × (…, k, n) → (…, m, n). */
  matmul(other: Tensor): Tensor {
    return matmul(this, other)
  }

  /** The sum over `dims` (negative ones count from the end), or over all; summed dimensions disappear. */
  sum(dims?: readonly number[]): Tensor {
    return sum(this, dims)
  }

  /** The mean over `dims` (negative ones count from the end), or over all; averaged dimensions disappear. */
  mean(dims?: readonly number[]): Tensor {
    return mean(this, dims)
  }

  /** int64 indices of the largest values along `dim`: the first of equals; NaN counts as largest. */
  argmax(dim: number): Tensor {
    return argmax(this, dim)
  }

  /**
   * Copies `source`, of the same shape, any dtype and any device, into this tensor's storage and bumps its version: a backward that
   * saved the old values fails. Not recorded.
   *
   * @throws AutogradError (ERR_IN_PLACE) if either tensor is tracked by autograd and this is not inside `noGrad`.
   */
  copy_(source: Tensor): this {
    checkWritable(this, 'copy_')
    checkWritable(source, 'copy_ from a source')
    copyInPlace(this, source)
    return this
  }

  /**
   * Sets every element to `value` and bumps the version. Not recorded.
   *
   * @throws AutogradError (ERR_IN_PLACE) if this tensor is tracked by autograd and this is not inside `noGrad`.
   */
  fill_(value: number): this {
    checkWritable(this, 'fill_')
    native.tensorFillInPlace(nativeOf(this), value)
    return this
  }

  /**
   * The one element as a number. Waits for the device.
   *
   * @throws ShapeError unless there is exactly one; RangeError for an int64 beyond ±2^53; on a GPU what `dataSync` throws.
   */
  item(): number {
    return native.tensorItem(nativeOf(this))
  }

  /**
   * The elements as they are at the time of the call; see `dataSync`. The event loop goes on while the device works; this
   * tensor may be written to or disposed meanwhile.
   */
  async data(options: { raw?: boolean } = {}): Promise<TypedArray> {
    if (this.device === 'cpu') return this.dataSync(options)
    const copy = new Handle(native.tensorClone(nativeOf(this)))
    try {
      await native.cudaSynchronize(copy.info.device)
      return native.tensorToArray(copy.native, options.raw ?? false)
    } finally {
      copy.release()
    }
  }

  /**
   * A copy of the elements in row-major order, whatever the memory format. float16 and bfloat16 come as Float32Array,
   * or as raw bits in a Uint16Array with `{ raw: true }`. Waits for the device.
   *
   * @throws on a GPU: what its kernels and collectives have reported since the last wait (ERR_TOO_FEW_VALUES, targets out
   *   of range, TimeoutError, …); DeviceError (ERR_CAPTURE) inside a capture.
   */
  dataSync(options: { raw?: boolean } = {}): TypedArray {
    return native.tensorToArray(nativeOf(this), options.raw ?? false)
  }

  /**
   * Adds to `grad` of every leaf the derivative of this tensor with respect to it, times `gradient`.
   *
   * @param gradient of this tensor's shape and dtype. Default: 1 for a tensor of one element.
   * @param options `retainGraph`: keeps what the graph saved, for another backward (default: the value of
   *   `createGraph`). `createGraph`: records the backward, so that gradients can be differentiated again.
   * @throws AutogradError without a graph, without a gradient for several elements, on a freed graph, on a saved tensor
   *   that was changed since, and for derivatives that do not exist; ShapeError, DTypeError for a wrong `gradient`.
   */
  backward(gradient?: Tensor, options: { retainGraph?: boolean; createGraph?: boolean } = {}): void {
    backward(this, gradient, options)
  }

  /**
   * Gives the memory back, unless a gradient graph or another tensor needs it, and with it what only this tensor's
   * gradient graph saved. Later use is ERR_DISPOSED.
   */
  dispose(): void {
    const { handle } = this.#state
    this.#state.handle = null
    this.#state.setHistory(null)
    handle?.release()
  }

  [Symbol.dispose](): void {
    this.dispose()
  }

  /**
   * The CUDA device address, for other CUDA libraries: valid while this tensor, or one that shares its storage, lives. What
   * is enqueued here so far has not necessarily run: `await cuda.synchronize()` before another library reads.
   *
   * @throws DeviceError on the CPU.
   */
  get ptr(): bigint {
    return native.tensorPointer(nativeOf(this))
  }

  /**
   * A tensor over memory of another CUDA library; nothing is copied.
   *
   * @param source `ptr`: device address of as many elements as `shape` has, dense in `memoryFormat` (default: row-major
   *   order). `stream`: the CUstream on which the other library writes them; later work here waits for what is enqueued
   *   there so far. Default: the memory is ready. `owner`: an object that is kept alive as long as the memory is used.
   * @throws DeviceError for the CPU, for a device that is not there, and for an address that is not on it; ArgumentError
   *   for an address that is not aligned; ShapeError.
   */
  static fromPointer(source: {
    ptr: number | bigint
    shape: Shape
    dtype: DType
    device: Device
    memoryFormat?: MemoryFormat
    stream?: number | bigint
    owner?: object
  }): Tensor {
    const operation = 'fromPointer'
    const { ptr, dtype, memoryFormat = 'contiguous', stream, owner } = source
    const shape = toShape(source.shape, operation)
    const device = toDevice(source.device, operation)
    if (cudaIndex(device) === null) {
      throw new DeviceError('ERR_DEVICE', `${operation}: expected device 'cuda:N', got '${device}'`)
    }
    const address = toAddress(ptr, 'ptr')
    const after = stream === undefined ? null : toAddress(stream, 'stream')
    return wrap(native.tensorFromPointer(address, shape, dtype, memoryFormat, device, after, holdOwner(owner)))
  }

  /** A short description without the values. */
  toString(): string {
    if (this.disposed) return 'Tensor(disposed)'
    const { device, dtype, memoryFormat, shape } = this
    const format = memoryFormat === 'contiguous' ? '' : `, ${memoryFormat}`
    const place = device === 'cpu' ? '' : `, ${device}`
    return `Tensor(${dtype} [${shape.join(', ')}]${format}${place}${this.requiresGrad ? ', requiresGrad' : ''})`
  }

  [Symbol.for('nodejs.util.inspect.custom')](): string {
    return this.toString()
  }
}

/** A device address or a stream's handle: a whole number from 0. */
function toAddress(value: number | bigint, name: string): bigint {
  if (typeof value === 'bigint' ? value >= 0n : Number.isSafeInteger(value) && value >= 0) return BigInt(value)
  throw argumentError(`fromPointer: expected ${name} to be a whole number of at least 0, got ${String(value)}`)
}

/** The state of `tensor`. */
export function stateOf(tensor: Tensor): TensorState {
  return readState(tensor)
}

/** The handle of `tensor`. Throws ERR_DISPOSED if it was disposed, ERR_ARGUMENT if it is no tensor. */
export function handleOf(tensor: Tensor): Handle {
  if (!(tensor instanceof Tensor)) throw argumentError(`expected a Tensor, got ${describe(tensor)}`)
  const { handle } = readState(tensor)
  if (!handle) throw makeError('ERR_DISPOSED', 'the tensor was disposed')
  return handle
}

function infoOf(tensor: Tensor): TensorInfo {
  return handleOf(tensor).info
}

/** The native tensor of `tensor`. Throws ERR_DISPOSED if it was disposed. */
export function nativeOf(tensor: Tensor): BindingTensor {
  return handleOf(tensor).native
}

/** `nativeOf` for an operand that may be missing. */
export function nativeOrNull(tensor: Tensor | null | undefined): BindingTensor | null {
  return tensor ? nativeOf(tensor) : null
}

/** Copies values, converting them; nothing where both are the same memory. Bumps the version of `target`. */
export function copyInPlace(target: Tensor, source: Tensor): void {
  const [to, from] = [nativeOf(target), nativeOf(source)]
  if (to !== from) native.tensorCopyInPlace(to, from)
}

/** A tensor over a new native one, in the current scope. */
export function wrap(tensor: BindingTensor): Tensor {
  return track(new Tensor(new TensorState(new Handle(tensor))))
}

/** Another tensor over the same native one, with a place in the graph of its own, in no scope. */
export function share(tensor: Tensor, history: Edge | null): Tensor {
  return fromHandle(handleOf(tensor).retain(), history)
}

/** A tensor that takes over one reference of `handle`, in no scope. */
export function fromHandle(handle: Handle, history: Edge | null): Tensor {
  return new Tensor(new TensorState(handle, history))
}

/** Where gradients of `tensor` go: the operation that made it, or its own `grad`; null if it requires none. */
export function edgeOf(tensor: Tensor): Edge | null {
  const state = stateOf(tensor)
  if (state.history) return state.history
  return state.requiresGrad ? { node: accumulateLater(tensor), index: 0 } : null
}

/** What a value is, for messages. */
export function describe(value: unknown): string {
  if (value === null) return 'null'
  if (typeof value !== 'object') return typeof value
  return value.constructor?.name ?? 'object'
}

/** Whether no recorded operation made `tensor`. */
export function isLeaf(tensor: Tensor): boolean {
  return stateOf(tensor).history === null
}

/** Whether `tensor` registers itself in modules. */
export function isParameter(tensor: Tensor): boolean {
  return stateOf(tensor).isParameter
}
