/**
 * Collectives on tensors and typed arrays. Every rank of the group makes the same calls in the same order; a rank
 * that makes another call gets, like the others, a MismatchError that names both.
 *
 * Each function checks its arguments and starts the operation before it returns; see `Work` for when it is done.
 * Until then its tensors are locked (ERR_IN_USE) and its typed arrays must be left alone.
 *
 * Tensors on a GPU go over NCCL in a group of backend nccl, and through host memory over TCP in one of backend tcp. Typed
 * arrays and tensors on the CPU go over TCP in both.
 */
import { argumentError } from '../errors.ts'
import { type BindingTensor, type BindingWork, native } from '../native.ts'
import { nativeOf, Tensor } from '../tensor.ts'
import type { DType } from '../types.ts'
import { nativeGroup, type ProcessGroup } from './process-group.ts'
import { CollectiveWork, type Work } from './work.ts'

/** How `allReduce` joins the ranks' numbers; 'avg' divides the sum by the group's size. */
export type ReduceOp = 'sum' | 'avg' | 'prod' | 'min' | 'max'

/** A typed array that collectives take. */
type CollectableArray = Float32Array | Float64Array | Int32Array | BigInt64Array

/** What collectives work on. A typed array counts as a tensor of one dimension. */
export type Collectable = Tensor | CollectableArray

const REDUCE_OPS: readonly ReduceOp[] = ['sum', 'avg', 'prod', 'min', 'max']

/**
 * Replaces `data` on every rank by the sum (or `op`) over all ranks, the same bits everywhere. Over TCP each element is
 * joined in rank order, float16 and bfloat16 in float32 with one rounding at the end; NCCL has an order of its own, and
 * joins half types as they are.
 *
 * @param options.op default 'sum'; 'avg' needs a floating-point dtype
 * @param options.group default: the default group
 * @throws ArgumentError, DTypeError; DistributedError ERR_NOT_INITIALIZED, ERR_NOT_IN_GROUP, ERR_GROUP_POISONED
 */
export function allReduce(data: Collectable, options: { op?: ReduceOp; group?: ProcessGroup | null } = {}): Work {
  const { op = 'sum' } = options
  if (!REDUCE_OPS.includes(op)) {
    throw argumentError(`op must be one of ${REDUCE_OPS.join(', ')}, got '${String(op)}'`)
  }
  const group = nativeGroup(options.group)
  return start([data], [data], ([tensor]) => native.allReduce(group, tensor as BindingTensor, op))
}

/**
 * Copies every rank's `input` to every rank: `outputs[r]` becomes rank r's.
 *
 * @param outputs one per rank of the group, of the input's shape and dtype
 * @throws ArgumentError, ShapeError, DTypeError; DistributedError as `allReduce`
 */
export function allGather(
  outputs: Collectable[],
  input: Collectable,
  options: { group?: ProcessGroup | null } = {},
): Work {
  const group = nativeGroup(options.group)
  if (!Array.isArray(outputs)) {
    throw argumentError('outputs must be an array with one tensor or typed array per rank')
  }
  return start([...outputs, input], outputs, (tensors) =>
    native.allGather(group, tensors.slice(0, -1), tensors.at(-1) as BindingTensor),
  )
}

/**
 * Copies `data` of rank `src` to every other rank, in place.
 *
 * @param options.src a rank of the default group, also when `group` is another
 * @throws ArgumentError when `src` is not in the group; DistributedError as `allReduce`
 */
export function broadcast(data: Collectable, options: { src: number; group?: ProcessGroup | null }): Work {
  const group = nativeGroup(options.group)
  const { src } = options
  if (!(Number.isInteger(src) && src >= 0)) {
    throw argumentError(`src must be a rank of the default group, got ${String(src)}`)
  }
  return start([data], [data], ([tensor]) => native.broadcast(group, tensor as BindingTensor, src))
}

/**
 * Done when every rank of the group has come here.
 *
 * @throws DistributedError as `allReduce`
 */
export function barrier(options: { group?: ProcessGroup | null } = {}): Work {
  return new CollectiveWork(native.barrier(nativeGroup(options.group)), null)
}

/**
 * A barrier whose TimeoutError names the ranks that did not come.
 *
 * @param options.timeout milliseconds; default: the group's
 * @throws ArgumentError; DistributedError as `allReduce`
 */
export function monitoredBarrier(options: { group?: ProcessGroup | null; timeout?: number } = {}): Work {
  const { timeout } = options
  if (timeout !== undefined && !(Number.isFinite(timeout) && timeout > 0)) {
    throw argumentError(`timeout must be a positive number of milliseconds, got ${String(timeout)}`)
  }
  return new CollectiveWork(native.monitoredBarrier(nativeGroup(options.group), timeout ?? null), null)
}

/** Starts an operation on `operands`, of which `results` are written. */
function start(
  operands: readonly Collectable[],
  results: readonly Collectable[],
  operation: (tensors: BindingTensor[]) => BindingWork,
): Work {
  const temporaries = new Map<CollectableArray, BindingTensor>()
  const release = (): void => temporaries.forEach(native.tensorDispose)
  try {
    const work = operation(operands.map((operand) => toNative(operand, temporaries)))
    if (temporaries.size === 0) return new CollectiveWork(work, null)
    return new CollectiveWork(work, { deliver: () => copyBack(results, temporaries), release })
  } catch (error) {
    release()
    throw error
  }
}

function toNative(operand: Collectable, temporaries: Map<CollectableArray, BindingTensor>): BindingTensor {
  if (operand instanceof Tensor) return nativeOf(operand)
  const dtype = dtypeOf(operand)
  const made = temporaries.get(operand) ?? native.tensorFromArray(operand, [operand.length], dtype, 'contiguous', 'cpu')
  temporaries.set(operand, made)
  return made
}

function dtypeOf(array: CollectableArray): DType {
  if (array instanceof Float32Array) return 'float32'
  if (array instanceof Float64Array) return 'float64'
  if (array instanceof Int32Array) return 'int32'
  if (array instanceof BigInt64Array) return 'int64'
  throw argumentError('collectives work on a Tensor, Float32Array, Float64Array, Int32Array or BigInt64Array')
}

function copyBack(results: readonly Collectable[], temporaries: ReadonlyMap<CollectableArray, BindingTensor>): void {
  for (const result of results) {
    if (result instanceof Tensor) continue
    const values = native.tensorToArray(temporaries.get(result) as BindingTensor, false)
    ;(result.set as (values: ArrayLike<number> | ArrayLike<bigint>) => void).call(result, values)
  }
}
