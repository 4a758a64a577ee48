/* Generated from crates/node by `npm run build`; not edited by hand. */

/** Numbers of any type; Uint16Array holds the bits of half-precision numbers. */
export type Numbers = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint16Array
export type Floats = Float32Array | Float64Array

/**
 * Which binding artifact the generated loader actually loaded: `'native'` for
 * a native addon, otherwise the `platformArchABI` of the WASI flavor. Every
 * flavor napi-rs can build is listed, because `NAPI_RS_NATIVE_LIBRARY_PATH`
 * can point the loader at a WASI artifact this package does not build itself.
 */
export declare const __napiBindingTarget: 'native' | 'wasm32-wasi' | 'wasm32-wasip1'

/** Ends the wait of an [`init_process_group`] early. Opaque to JavaScript. */
export declare class BindingCancel {
  constructor()
  cancel(): void
}

/** Recorded work. Opaque to JavaScript. */
export declare class BindingGraph {}

/** A handle on a process group. Opaque to JavaScript. */
export declare class BindingGroup {}

/** A reducer. Opaque to JavaScript. */
export declare class BindingReducer {}

/** What backward needs of a forward call. Opaque to JavaScript. */
export declare class BindingSaved {}

/** One reference on a tensor's storage. Opaque to JavaScript. */
export declare class BindingTensor {}

/** A collective under way. Opaque to JavaScript. */
export declare class BindingWork {}

export declare function abortGroup(group: BindingGroup): void

export declare function adamwStep(parameter: BindingTensor, gradient: BindingTensor, firstMoment: BindingTensor, secondMoment: BindingTensor, step: BindingAdamWStep, stepCounter?: BindingTensor | undefined | null): void

export declare function adaptiveAvgPool2d(x: BindingTensor, outputSize: Array<number>): BindingTensor

export declare function adaptiveAvgPool2dBackward(gradOutput: BindingTensor, inputShape: Array<number>): BindingTensor

export declare function addInPlace(accumulator: BindingTensor, addend: BindingTensor): void

export declare function allGather(group: BindingGroup, outputs: Array<BindingTensor>, input: BindingTensor): BindingWork

export declare function allReduce(group: BindingGroup, data: BindingTensor, op: string): BindingWork

export declare function argmax(a: BindingTensor, dim: number): BindingTensor

export declare function avgPool2d(x: BindingTensor, kernel: Array<number>, stride: Array<number>, padding: Array<number>): BindingTensor

export declare function avgPool2dBackward(gradOutput: BindingTensor, inputShape: Array<number>, kernel: Array<number>, stride: Array<number>, padding: Array<number>): BindingTensor

export declare function barrier(group: BindingGroup): BindingWork

export declare function batchNormApply(input: BindingTensor, stats: BindingStats, weight: BindingTensor | undefined | null, bias: BindingTensor | undefined | null, eps: number): BindingTensor

export declare function batchNormApplyArray(input: BindingArray, stats: BindingStats, weight: Floats | undefined | null, bias: Floats | undefined | null, eps: number, output: Floats): void

export declare function batchNormBackward(gradOutput: BindingTensor, input: BindingTensor, weight: BindingTensor | undefined | null, saved: BindingSaved, needs: BindingNeeds): BindingBatchNormGradients

export declare function batchNormBackwardApply(gradOutput: BindingTensor, input: BindingTensor, stats: BindingStats, sums: BindingSums, weight: BindingTensor | undefined | null, eps: number): BindingTensor

export declare function batchNormBackwardApplyArray(gradOutput: BindingArray, input: BindingArray, stats: BindingStats, sums: BindingSums, weight: Floats | undefined | null, eps: number, gradInput: Floats): void

export declare function batchNormBackwardArray(gradOutput: BindingArray, input: BindingArray, weight: Floats | undefined | null, saved: BindingSaved, gradients: BindingGradientArrays): void

export declare function batchNormBackwardReduce(gradOutput: BindingTensor, input: BindingTensor, stats: BindingStats, eps: number): BindingSums

export declare function batchNormBackwardReduceArray(gradOutput: BindingArray, input: BindingArray, stats: BindingStats, eps: number): BindingSums

export declare function batchNormDoubleBackward(input: BindingTensor, gradOutput: BindingTensor, weight: BindingTensor | undefined | null, saved: BindingSaved, gradGradInput?: BindingTensor | undefined | null, gradGradWeight?: BindingTensor | undefined | null, gradGradBias?: BindingTensor | undefined | null): BindingBatchNormDoubleGradients

export declare function batchNormForward(input: BindingTensor, weight: BindingTensor | undefined | null, bias: BindingTensor | undefined | null, runningMean: BindingTensor | undefined | null, runningVar: BindingTensor | undefined | null, numBatchesTracked: BindingTensor | undefined | null, options: BindingBatchNormOptions, group?: BindingGroup | undefined | null): BindingBatchNormForward

export declare function batchNormForwardArray(input: BindingArray, weight: Floats | undefined | null, bias: Floats | undefined | null, runningMean: Floats | undefined | null, runningVar: Floats | undefined | null, options: BindingBatchNormOptions, group: BindingGroup | undefined | null, output: Floats): BindingSaved

export declare function batchNormStats(input: BindingTensor): BindingStats

export declare function batchNormStatsArray(input: BindingArray): BindingStats

export declare function binary(op: string, a: BindingTensor, b: BindingTensor): BindingTensor

export declare function binaryScalar(op: string, a: BindingTensor, scalar: number): BindingTensor

/** Options of [`adamw_step`]. */
export interface BindingAdamWStep {
  lr: number
  beta1: number
  beta2: number
  eps: number
  weightDecay: number
  step: number
}

/** A dense tensor in a typed array. */
export interface BindingArray {
  data: Float32Array | Float64Array
  shape: Array<number>
  memoryFormat: string
}

/** Result of [`batch_norm_double_backward`]. */
export interface BindingBatchNormDoubleGradients {
  gradInput: BindingTensor
  gradGradOutput: BindingTensor
  gradWeight: BindingTensor | null
}

/** Result of [`batch_norm_forward`]. */
export interface BindingBatchNormForward {
  output: BindingTensor
  saved: BindingSaved
}

/** Result of [`batch_norm_backward`]. */
export interface BindingBatchNormGradients {
  gradInput: BindingTensor | null
  gradWeight: BindingTensor | null
  gradBias: BindingTensor | null
}

/** How a forward call normalises. */
export interface BindingBatchNormOptions {
  /** Statistics of the input instead of the running ones. */
  training: boolean
  /** Absent for the cumulative average. */
  momentum?: number
  eps: number
}

/** Milliseconds of each iteration. */
export interface BindingBatchNormTimes {
  forward: Array<number>
  backward: Array<number>
}

/** Result of [`load_safetensors`]. */
export interface BindingCheckpoint {
  names: Array<string>
  tensors: Array<BindingTensor>
  metadata: Record<string, string>
}

/** Result of [`cross_entropy`]. */
export interface BindingCrossEntropy {
  loss: BindingTensor
  logProbs: BindingTensor
  counted: BindingTensor
}

/** Milliseconds of each replay of a part on a GPU. */
export interface BindingCudaBatchNormTimes {
  stats: Array<number>
  normalize: Array<number>
  backwardReduce: Array<number>
  backwardApply: Array<number>
  /** With copies on the device in place of the all_gather. */
  syncForward: Array<number>
  /** With a multiplication in place of the all_reduce. */
  syncBackward: Array<number>
  forward: Array<number>
  backward: Array<number>
}

/** Milliseconds of each copy on a GPU. */
export interface BindingCudaCopyTimes {
  driver: Array<number>
  kernel: Array<number>
}

/** What a GPU was asked to do so far. */
export interface BindingCudaCounts {
  launches: number
  hostWaits: number
  uploads: number
  downloads: number
}

/** What the driver tells. */
export interface BindingCudaInfo {
  /** The newest CUDA version it supports. */
  driver: string | null
  error: string | null
  devices: Array<BindingGpu>
}

/** One row of [`error_codes`]. */
export interface BindingErrorCode {
  /** The stable code, `ERR_…`. */
  code: string
  /** The class of errors it belongs to. */
  kind: string
}

/** One GPU. */
export interface BindingGpu {
  name: string
  uuid: string
  totalMemory: number
  freeMemory: number
  computeCapability: string
  multiprocessors: number
  /** GPUs whose memory it reads directly. */
  peers: Array<number>
  /** Who computes matrix products. */
  gemm: string
}

/** Where [`batch_norm_backward_array`] writes. */
export interface BindingGradientArrays {
  gradInput: Floats
  /** C values, of the weight's type; of the input's without a weight. */
  gradWeight: Floats
  /** Likewise. */
  gradBias: Floats
}

/** What JavaScript shows of a group. */
export interface BindingGroupInfo {
  /** −1 on a rank that is not a member. */
  rank: number
  size: number
  ranks: Array<number>
  backend: string
  /** Why that backend, in a sentence. */
  reason: string
  /** The GPU of backend nccl. */
  device?: string
  timeout: number
  name: string
}

/** How this process joins the world. */
export interface BindingGroupOptions {
  initMethod: string
  rank?: number
  worldSize?: number
  timeout: number
  token?: string
  /** 'tcp' or 'nccl'; chosen if absent. */
  backend?: string
  /** The GPU of backend nccl; that of the local rank if absent. */
  deviceId?: string
}

/** Result of [`max_pool2d`]. */
export interface BindingMaxPool {
  output: BindingTensor
  indices: BindingTensor
}

/** Counts of this process. */
export interface BindingMemoryStats {
  tensors: number
  bytes: number
  reservedBytes: number
  peakBytes: number
}

/** Which NCCL would be used. */
export interface BindingNcclInfo {
  version: string | null
  path: string | null
  /** Every path that was tried. */
  error: string | null
}

/** Which gradients to make. */
export interface BindingNeeds {
  input: boolean
  weight: boolean
  bias: boolean
}

/** What JavaScript shows of saved statistics. */
export interface BindingSavedInfo {
  mean: Floats
  invstd: Floats
  count: number
}

/** Options of [`sgd_step`]. */
export interface BindingSgdStep {
  lr: number
  momentum: number
  dampening: number
  weightDecay: number
  nesterov: boolean
  first: boolean
}

/** Count, mean and M2 of each channel. */
export interface BindingStats {
  count: number
  mean: Float64Array
  m2: Float64Array
}

/** This rank's sums for backward. */
export interface BindingSums {
  sumDy: Float64Array
  sumDyXmu: Float64Array
}

/** What JavaScript shows of a tensor. */
export interface BindingTensorInfo {
  shape: Array<number>
  dtype: string
  device: string
  memoryFormat: string
  numel: number
}

export declare function broadcast(group: BindingGroup, data: BindingTensor, src: number): BindingWork

export declare function broadcastTensors(group: BindingGroup, tensors: Array<BindingTensor>, src: number): void

export declare function captureAbandon(deviceName: string): void

export declare function captureFinish(deviceName: string): BindingGraph

export declare function captureStart(deviceName: string): void

export declare function conv2d(x: BindingTensor, weight: BindingTensor, bias: BindingTensor | undefined | null, stride: Array<number>, padding: Array<number>, groups: number): BindingTensor

export declare function conv2dBackwardInput(gradOutput: BindingTensor, weight: BindingTensor, inputShape: Array<number>, inputMemoryFormat: string, stride: Array<number>, padding: Array<number>, groups: number): BindingTensor

export declare function conv2dBackwardWeight(gradOutput: BindingTensor, x: BindingTensor, weightShape: Array<number>, stride: Array<number>, padding: Array<number>, groups: number): BindingTensor

export declare function crossEntropy(logits: BindingTensor, targets: BindingTensor, ignoreIndex: number, reductionName: string): BindingCrossEntropy

export declare function crossEntropyBackward(gradLoss: BindingTensor, logProbs: BindingTensor, targets: BindingTensor, counted: BindingTensor, ignoreIndex: number, reductionName: string): BindingTensor

export declare function cudaCounts(deviceName: string): BindingCudaCounts

export declare function cudaDeviceCount(): number

export declare function cudaInfo(): BindingCudaInfo

export declare function cudaSynchronize(deviceName: string): Promise<void>

export declare function cudaUnavailableReason(): string | null

export declare function destroyGroup(group: BindingGroup): Promise<void>

export declare function distributedIndices(length: number, numReplicas: number, rank: number, shuffle: boolean, seed: number, epoch: number, dropLast: boolean): Uint32Array

/** Every error code of the library, in the order of docs/errors.md. */
export declare function errorCodes(): Array<BindingErrorCode>

export declare function expand(a: BindingTensor, shape: Array<number>): BindingTensor

export declare function gatherStats(stats: BindingStats, group?: BindingGroup | undefined | null): BindingStats

/** Threads one operation uses. */
export declare function getNumThreads(): number

export declare function graphDispose(graph: BindingGraph): void

export declare function graphReplay(graph: BindingGraph): void

export declare function groupInfo(group: BindingGroup): BindingGroupInfo

export declare function initProcessGroup(options: BindingGroupOptions, cancel: BindingCancel): Promise<BindingGroup>

export declare function isCapturing(deviceName: string): boolean

export declare function linear(x: BindingTensor, weight: BindingTensor, bias?: BindingTensor | undefined | null): BindingTensor

export declare function loadSafetensors(path: string): Promise<BindingCheckpoint>

export declare function localRank(): number

export declare function manualSeed(seed: bigint): void

export declare function matmul(a: BindingTensor, b: BindingTensor, transposeA: boolean, transposeB: boolean): BindingTensor

export declare function maxPool2d(x: BindingTensor, kernel: Array<number>, stride: Array<number>, padding: Array<number>): BindingMaxPool

export declare function maxPool2dBackward(gradOutput: BindingTensor, indices: BindingTensor, inputShape: Array<number>, kernel: Array<number>, stride: Array<number>, padding: Array<number>): BindingTensor

/** Live storages of a device and their bytes. */
export declare function memoryStats(deviceName: string): BindingMemoryStats

export declare function mergeStats(stats: Array<BindingStats>): BindingStats

export declare function monitoredBarrier(group: BindingGroup, timeout?: number | undefined | null): BindingWork

export declare function ncclInfo(): BindingNcclInfo

export declare function newGroup(world: BindingGroup, ranks: Array<number>, timeout: number): Promise<BindingGroup>

/** An id to hold an owner under, of this environment alone. */
export declare function newOwner(): number

export declare function randperm(n: number): Uint32Array

export declare function reducerAbort(reducer: BindingReducer): void

export declare function reducerCreate(group: BindingGroup, names: Array<string>, parameters: Array<BindingTensor>, bucketBytes: number, firstBucketBytes: number): BindingReducer

export declare function reducerFinalize(reducer: BindingReducer, gradients: Array<BindingTensor>, indices: Array<number>): void

export declare function reducerMarkReady(reducer: BindingReducer, index: number, gradient: BindingTensor): void

export declare function reducerPrepare(reducer: BindingReducer, used?: Array<boolean> | undefined | null): Array<boolean>

/** This environment's owners whose memory was let go of, once each. */
export declare function releasedOwners(): Array<number>

export declare function relu(x: BindingTensor): BindingTensor

export declare function reluBackward(gradOutput: BindingTensor, output: BindingTensor): BindingTensor

export declare function savedDispose(saved: BindingSaved): void

export declare function savedInfo(saved: BindingSaved): BindingSavedInfo

export declare function saveSafetensors(path: string, names: Array<string>, tensors: Array<BindingTensor>, metadata?: Record<string, string> | undefined | null): Promise<void>

export declare function setKeepFreed(keep: boolean): void

/** Threads one operation uses. */
export declare function setNumThreads(threads: number): void

export declare function sgdStep(parameter: BindingTensor, gradient: BindingTensor, momentumBuffer: BindingTensor | undefined | null, step: BindingSgdStep): void

export declare function softmax(x: BindingTensor, dim: number, log: boolean): BindingTensor

export declare function softmaxBackward(gradOutput: BindingTensor, output: BindingTensor, dim: number, log: boolean): BindingTensor

export declare function sumDims(a: BindingTensor, dims: Array<number> | undefined | null, mean: boolean): BindingTensor

export declare function sumTo(a: BindingTensor, shape: Array<number>): BindingTensor

export declare function tensorAlias(tensor: BindingTensor): BindingTensor

export declare function tensorArange(end: number, dtypeName: string, deviceName: string): BindingTensor

export declare function tensorClone(tensor: BindingTensor): BindingTensor

export declare function tensorCopyInPlace(target: BindingTensor, source: BindingTensor): void

export declare function tensorDispose(tensor: BindingTensor): void

export declare function tensorFillInPlace(target: BindingTensor, value: number): void

export declare function tensorFromArray(data: Numbers, shape: Array<number>, dtypeName: string, memoryFormat: string, deviceName: string): BindingTensor

export declare function tensorFromPointer(pointer: bigint, shape: Array<number>, dtypeName: string, memoryFormat: string, deviceName: string, stream: bigint | undefined | null, owner: number): BindingTensor

export declare function tensorFull(shape: Array<number>, value: number, dtypeName: string, memoryFormat: string, deviceName: string): BindingTensor

export declare function tensorInfo(tensor: BindingTensor): BindingTensorInfo

export declare function tensorItem(tensor: BindingTensor): number

export declare function tensorPointer(tensor: BindingTensor): bigint

export declare function tensorRand(shape: Array<number>, dtypeName: string, memoryFormat: string, deviceName: string): BindingTensor

export declare function tensorRandn(shape: Array<number>, dtypeName: string, memoryFormat: string, deviceName: string): BindingTensor

export declare function tensorReshape(tensor: BindingTensor, shape: Array<number>): BindingTensor

export declare function tensorSlice(tensor: BindingTensor, start: number, end: number): BindingTensor

export declare function tensorStack(tensors: Array<BindingTensor>): BindingTensor

export declare function tensorTo(tensor: BindingTensor, dtypeName?: string | undefined | null, memoryFormat?: string | undefined | null, deviceName?: string | undefined | null): BindingTensor

export declare function tensorToArray(tensor: BindingTensor, raw: boolean): Numbers

export declare function tensorVersion(tensor: BindingTensor): number

/** Milliseconds of each of `iterations` exchanges of `bytes` per rank, back to back. */
export declare function timeAllGather(group: BindingGroup, bytes: number, iterations: number): Array<number>

/** Milliseconds of `iterations` float32 batch norm steps in two phases, on tensors that are made once. */
export declare function timeBatchNorm(shape: Array<number>, memoryFormat: string, iterations: number): BindingBatchNormTimes

/** Milliseconds of the parts of a batch norm step of one of `ranks` ranks, by the GPU's clock. */
export declare function timeCudaBatchNorm(device: string, shape: Array<number>, memoryFormat: string, dtypeName: string, ranks: number, iterations: number): BindingCudaBatchNormTimes

/** Milliseconds of copies of `bytes` on a GPU, by the driver and by a kernel, by the GPU's clock. */
export declare function timeCudaCopy(device: string, bytes: number, iterations: number): BindingCudaCopyTimes

export declare function updateRunningStats(runningMean: BindingTensor, runningVar: BindingTensor, stats: BindingStats, momentum: number): void

export declare function updateRunningStatsArray(runningMean: Floats, runningVar: Floats, stats: BindingStats, momentum: number): void

export declare function verifyParameters(group: BindingGroup, names: Array<string>, tensors: Array<BindingTensor>, others: Array<BindingTensor>, problem?: string | undefined | null): void

/** Version of the addon. */
export declare function version(): string

export declare function workCompleted(work: BindingWork): boolean

export declare function workPromise(work: BindingWork): Promise<void>

export declare function workWait(work: BindingWork): void
