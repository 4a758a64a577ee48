/** 'syncbn': synchronized batch normalization and data-parallel training. */
export { defineFunction, grad, noGrad } from './autograd.ts'
export { syncBatchNorm, syncBatchNormBackward } from './batch-norm.ts'
export type { BatchNormResult, SavedBatchNorm, SyncBatchNormArguments } from './batch-norm.ts'
export {
  batchNormApply,
  batchNormBackwardApply,
  batchNormBackwardReduce,
  batchNormStats,
  gatherStats,
  mergeStats,
} from './batch-norm-split.ts'
export { arange, full, manualSeed, ones, rand, randn, tensor, zeros } from './creation.ts'
export { cuda } from './cuda.ts'
export type { CapturedStep } from './cuda.ts'
export * from './data/index.ts'
export * from './distributed/index.ts'
export {
  ArgumentError,
  AutogradError,
  DeviceError,
  DistributedError,
  DTypeError,
  MismatchError,
  OutOfMemoryError,
  PeerLostError,
  ShapeError,
  SyncBnError,
  TimeoutError,
} from './errors.ts'
export type { ErrorCode } from './errors.ts'
export { memory } from './memory.ts'
export * from './nn/index.ts'
export * from './optim/index.ts'
export { loadSafetensors, saveSafetensors } from './safetensors.ts'
export { keep, tidy } from './scope.ts'
export { Tensor } from './tensor.ts'
export type {
  ArrayTensor,
  BatchNormArguments,
  ChannelStats,
  ConversionTarget,
  Device,
  DType,
  FunctionContext,
  MemoryFormat,
  NestedArray,
  Pair,
  Reduction,
  Shape,
  TensorOptions,
  TypedArray,
} from './types.ts'
