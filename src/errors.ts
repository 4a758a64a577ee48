/**
 * The errors of the library: one class per kind, one stable `code` per cause.
 *
 * The native side reports errors as data, `{ code, message, … }`; `fromNative` makes them into classes. The table of
 * codes is the same closed list as the native one (a test compares the two) and is explained in docs/errors.md.
 */

const KINDS = {
  ERR_SHAPE: 'Shape',
  ERR_TOO_FEW_VALUES: 'Shape',
  ERR_DTYPE: 'DType',
  ERR_DEVICE: 'Device',
  ERR_BACKEND_UNAVAILABLE: 'Device',
  ERR_CUDA: 'Device',
  ERR_CAPTURE: 'Device',
  ERR_ARGUMENT: 'Argument',
  ERR_DISPOSED: 'Argument',
  ERR_IN_USE: 'Argument',
  ERR_FILE: 'Argument',
  ERR_STATE_DICT: 'Argument',
  ERR_CONVERT: 'Argument',
  ERR_NO_GRAPH: 'Autograd',
  ERR_GRAPH_FREED: 'Autograd',
  ERR_SAVED_TENSOR_MODIFIED: 'Autograd',
  ERR_NOT_DIFFERENTIABLE: 'Autograd',
  ERR_IN_PLACE: 'Autograd',
  ERR_UNUSED_PARAMETERS: 'Autograd',
  ERR_NOT_INITIALIZED: 'Distributed',
  ERR_ALREADY_INITIALIZED: 'Distributed',
  ERR_NOT_IN_GROUP: 'Distributed',
  ERR_ENVIRONMENT: 'Distributed',
  ERR_TOKEN_REQUIRED: 'Distributed',
  ERR_TOKEN_REJECTED: 'Distributed',
  ERR_ADDRESS_IN_USE: 'Distributed',
  ERR_RENDEZVOUS: 'Distributed',
  ERR_GROUP_POISONED: 'Distributed',
  ERR_ABORTED: 'Distributed',
  ERR_IO: 'Distributed',
  ERR_NCCL: 'Distributed',
  ERR_TIMEOUT: 'Timeout',
  ERR_PEER_LOST: 'PeerLost',
  ERR_MISMATCH: 'Mismatch',
  ERR_PARAMETER_MISMATCH: 'Mismatch',
  ERR_OUT_OF_MEMORY: 'OutOfMemory',
  ERR_INTERNAL: 'Internal',
} as const

/** The stable name of a cause. The list is closed; docs/errors.md explains each. */
export type ErrorCode = keyof typeof KINDS

/** Every code with the kind of its class, in the order of docs/errors.md. */
export const errorKinds: Readonly<Record<ErrorCode, (typeof KINDS)[ErrorCode]>> = KINDS

/** Who was involved in a distributed error, as far as it is known; the native side writes null for what is not. */
export interface ErrorDetails {
  /** Name of the process group. */
  group?: string
  /** The rank that reports. */
  rank?: number
  /** The rank the error is about. */
  peer?: number
  /** The collective or call. */
  operation?: string
}

/** Every error of the library. `code` never changes meaning; messages say what was expected and what came. */
export class SyncBnError extends Error {
  override name = 'SyncBnError'
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string) {
    super(message)
    this.code = code
  }
}

/** A tensor has the wrong number of dimensions or sizes. */
export class ShapeError extends SyncBnError {
  override name = 'ShapeError'
}

/** A tensor has the wrong element type. */
export class DTypeError extends SyncBnError {
  override name = 'DTypeError'
}

/** A tensor lives on, or a call names, the wrong or an unavailable device; or a device failed. */
export class DeviceError extends SyncBnError {
  override name = 'DeviceError'
}

/** Any other argument is wrong. */
export class ArgumentError extends SyncBnError {
  override name = 'ArgumentError'
}

/** The gradient graph cannot do what was asked. */
export class AutogradError extends SyncBnError {
  override name = 'AutogradError'
}

/** Process groups: set-up, membership, I/O. */
export class DistributedError extends SyncBnError {
  override name = 'DistributedError'
  declare readonly group?: string
  declare readonly rank?: number
  declare readonly peer?: number
  declare readonly operation?: string

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(code, message)
    if (details.group != null) this.group = details.group
    if (details.rank != null) this.rank = details.rank
    if (details.peer != null) this.peer = details.peer
    if (details.operation != null) this.operation = details.operation
  }
}

/** A deadline passed; the message names the ranks that are missing and each rank's pending operation. */
export class TimeoutError extends DistributedError {
  override name = 'TimeoutError'
}

/** A rank's process or connection ended. */
export class PeerLostError extends DistributedError {
  override name = 'PeerLostError'
}

/** Ranks called different collectives, or the same with other sizes or dtypes. */
export class MismatchError extends DistributedError {
  override name = 'MismatchError'
}

/** The device has no memory left. */
export class OutOfMemoryError extends SyncBnError {
  override name = 'OutOfMemoryError'
}

const CLASSES = {
  Shape: ShapeError,
  DType: DTypeError,
  Device: DeviceError,
  Argument: ArgumentError,
  Autograd: AutogradError,
  Distributed: DistributedError,
  Timeout: TimeoutError,
  PeerLost: PeerLostError,
  Mismatch: MismatchError,
  OutOfMemory: OutOfMemoryError,
  Internal: SyncBnError,
}

/** The error of this code, in the class its code belongs to. */
export function makeError(code: ErrorCode, message: string, details: ErrorDetails = {}): SyncBnError {
  return new CLASSES[KINDS[code]](code, message, details)
}

/** ERR_ARGUMENT, the commonest error of this layer. */
export function argumentError(message: string): ArgumentError {
  return new ArgumentError('ERR_ARGUMENT', message)
}

/** Error codes that Node-API itself gives to arguments of the wrong JavaScript type. */
const CONVERSION_FAILURES = new Set([
  'InvalidArg',
  'ObjectExpected',
  'StringExpected',
  'NameExpected',
  'FunctionExpected',
  'NumberExpected',
  'BooleanExpected',
  'ArrayExpected',
  'BigintExpected',
  'DateExpected',
  'ArrayBufferExpected',
  'DetachableArraybufferExpected',
])

/**
 * Makes what the native side threw into an error of the library: its JSON becomes the class of its code, a text that
 * starts with `RangeError:` a RangeError, an argument that could not be converted an ArgumentError. Anything else is
 * returned as it is.
 */
export function fromNative(error: unknown): unknown {
  if (!(error instanceof Error)) return error
  if (error.message.startsWith('RangeError:')) return new RangeError(error.message.slice('RangeError:'.length).trim())
  const data = parseError(error.message)
  if (data) return makeError(data.code, data.message, data)
  if (CONVERSION_FAILURES.has((error as { code?: unknown }).code as string)) return argumentError(error.message)
  return error
}

interface NativeError extends ErrorDetails {
  code: ErrorCode
  message: string
}

function parseError(text: string): NativeError | null {
  if (!text.startsWith('{')) return null
  try {
    const data = JSON.parse(text) as NativeError
    return Object.hasOwn(KINDS, data.code) ? data : null
  } catch {
    return null
  }
}
