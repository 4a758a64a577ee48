/** What the benchmark of a GPU finds, and the tables that show it. */
import type { CudaProblem } from './cuda-problems.ts'
import { nameOf } from './cuda-problems.ts'
import type { TorchCudaTimes, TorchWay } from './peers.ts'
import { groupBy, ratio, table } from './results.ts'

/** Milliseconds of ours on the device: medians. */
export interface CudaTimes {
  stats: number
  normalize: number
  backwardReduce: number
  backwardApply: number
  syncForward: number
  syncBackward: number
  forward: number
  backward: number
}

/** Bytes that have to be moved (3 passes over the input forward, 5 backward), per second. */
interface Bandwidth {
  forward: number
  backward: number
}

export interface CudaResult extends CudaProblem {
  bytes: number
  ours: CudaTimes
  /** Of SyncBatchNorm. */
  gigabytesPerSecond: Bandwidth
  /** A module's call and backward from JavaScript. */
  moduleMs: number
  torch?: TorchCudaTimes
  /** `F.batch_norm` and its backward from Python. */
  torchLayerMs?: number
}

/** Something the kernels are meant to reach. */
export interface Goal {
  name: string
  /** The value that is to be reached. */
  wanted: number
  /** The least of all problems, and whose it is; null where nothing was measured. */
  worst: { value: number; problem: string } | null
  /** Whether it was reached; null where nothing was measured. */
  reached: boolean | null
}

export interface CudaResults {
  card: string
  computeCapability: string
  driver: string
  node: string
  /** Slots of SyncBatchNorm's message. */
  ranks: number
  /** Reads and writes counted; the best of the driver's copy and a kernel's. */
  copyGigabytesPerSecond: number
  torch?: Record<string, unknown>
  torchCopyGigabytesPerSecond?: number
  quick: boolean
  problems: CudaResult[]
  /** What was meant to be reached. */
  goals?: Goal[]
}

/** All results as text. */
export function cudaReport(results: CudaResults): string {
  const { card, computeCapability, driver, ranks, copyGigabytesPerSecond, torch } = results
  const peer = torch ? `; PyTorch ${String(torch['torch'])}` : ''
  return [
    `${card}, compute capability ${computeCapability}, driver for CUDA ${driver}${peer}`,
    `memory copy ${copyGigabytesPerSecond.toFixed(0)} GB/s (read + write); messages of ${ranks} ranks`,
    '',
    ...[...groupBy(results.problems, ({ dtype }) => dtype)].flatMap(([dtype, rows]) => [
      `SyncBatchNorm's kernels, ${dtype}`,
      ...problemTable(rows, copyGigabytesPerSecond),
      '',
      `each kernel's share of the copy's bandwidth, ${dtype}`,
      ...kernelTable(rows, copyGigabytesPerSecond),
      '',
    ]),
  ].join('\n')
}

function kernelTable(rows: readonly CudaResult[], copy: number): string[] {
  const share = (passes: number, bytes: number, ms: number): string =>
    `${((100 * passes * bytes) / ms / 1e6 / copy).toFixed(0)} %`
  return table([
    ['', 'MB', 'statistics', 'normalize', 'backward reduce', 'backward apply'],
    ...rows.map((row) => {
      const { bytes, ours } = row
      return [
        nameOf(row),
        (bytes / 1e6).toFixed(1),
        share(1, bytes, ours.stats),
        share(2, bytes, ours.normalize),
        share(2, bytes, ours.backwardReduce),
        share(3, bytes, ours.backwardApply),
      ]
    }),
  ])
}

function problemTable(rows: readonly CudaResult[], copy: number): string[] {
  const withTorch = rows.some(({ torch }) => torch !== undefined)
  const peer = ['PyTorch ÷ ours, forward', 'backward', 'plain']
  const head = ['', 'forward ms', 'GB/s', 'of copy', 'backward ms', 'GB/s', 'of copy', 'to one rank', 'as a module ms']
  const share = (gigabytes: number): string => `${((100 * gigabytes) / copy).toFixed(0)} %`
  return table([
    [...head, ...(withTorch ? peer : [])],
    ...rows.map((row) => {
      const { ours, gigabytesPerSecond: speed, torch, moduleMs } = row
      const plain = ours.forward + ours.backward
      return [
        nameOf(row),
        ours.syncForward.toFixed(4),
        speed.forward.toFixed(0),
        share(speed.forward),
        ours.syncBackward.toFixed(4),
        speed.backward.toFixed(0),
        share(speed.backward),
        ratio(ours.syncForward + ours.syncBackward, plain),
        moduleMs.toFixed(4),
        ...(withTorch ? against(ours, plain, torch) : []),
      ]
    }),
  ])
}

function against(ours: CudaTimes, plain: number, torch: TorchCudaTimes | undefined): string[] {
  if (torch === undefined) return ['', '', '']
  return [
    ratio(torch.syncForward, ours.syncForward),
    ratio(torch.syncBackward, ours.syncBackward),
    ratio(Math.min(total(torch.cudnn), total(torch.native)), plain),
  ]
}

/** An implementation that does not take the input never is the fastest. */
function total(way: TorchWay): number {
  return 'unavailable' in way ? Infinity : way.forwardMs + way.backwardMs
}
