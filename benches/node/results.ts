/** What the benchmark finds, and the tables that show it. */
import type { Path } from './rank.ts'

/** How one layer was computed in one way. */
export interface LayerResult {
  network: string
  shape: readonly number[]
  memoryFormat: string
  /** 'torch' is PyTorch's batch norm in one process. */
  path: Path | 'torch'
  ranks: number
  forwardMs: number
  backwardMs: number
  /** Bytes that have to be moved (3 passes over the input forward, 5 backward), per second. */
  gigabytesPerSecond: number
}

/** How long the kernels take without JavaScript, in two phases, and PyTorch's, both on reused memory. */
export interface KernelResult {
  network: string
  shape: readonly number[]
  memoryFormat: string
  ours: Times
  /** The same by a module of one rank: with JavaScript, the tape, and an output from the pool. */
  module: Times
  torch?: Times
}

export interface Times {
  forwardMs: number
  backwardMs: number
}

/** How long an exchange of statistics takes: natively, called from JavaScript, or by a peer. */
export interface ExchangeResult {
  what: string
  ranks: number
  bytes: number
  p50Us: number
  p99Us: number
}

export interface Results {
  machine: { processor: string; cores: number; node: string; copyGigabytesPerSecond: number; torch?: unknown }
  quick: boolean
  layers: LayerResult[]
  kernels: KernelResult[]
  exchanges: ExchangeResult[]
}

/** The value below which `part` of the values lie. */
export function quantile(values: readonly number[], part: number): number {
  const sorted = [...values].sort((a, b) => a - b)
  const at = Math.min(sorted.length - 1, Math.floor(part * sorted.length))
  return sorted[at] ?? NaN
}

export const median = (values: readonly number[]): number => quantile(values, 0.5)

/** A name for a way of computing. */
export function label({ path, ranks }: Pick<LayerResult, 'path' | 'ranks'>): string {
  if (path === 'torch') return 'PyTorch batch_norm'
  if (path === 'batchNorm') return 'BatchNorm, 1 process'
  const kind = path === 'module' ? 'SyncBatchNorm' : 'syncBatchNorm()'
  return `${kind}, ${ranks} ${ranks === 1 ? 'rank' : 'ranks'}`
}

/** All results as text. */
export function report({ machine, layers, kernels, exchanges }: Results): string {
  const { processor, cores, node, copyGigabytesPerSecond } = machine
  return [
    `${processor}, ${cores} cores, Node ${node}; memory copy ${copyGigabytesPerSecond.toFixed(1)} GB/s (read + write)`,
    '',
    ...[...groupBy(layers, problemName)].flatMap(([name, rows]) => [
      name,
      ...layerTable(rows, copyGigabytesPerSecond),
      '',
    ]),
    'Kernels in two phases, on reused memory, without JavaScript',
    ...kernelTable(kernels),
    '',
    'Exchange of statistics',
    ...exchangeTable(exchanges),
  ].join('\n')
}

export function problemName({ network, shape, memoryFormat }: LayerResult): string {
  return `${network} (${shape.join(', ')}) ${memoryFormat}`
}

export function groupBy<T>(values: readonly T[], key: (value: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>()
  for (const value of values) groups.set(key(value), [...(groups.get(key(value)) ?? []), value])
  return groups
}

function layerTable(rows: readonly LayerResult[], copy: number): string[] {
  const total = (row: LayerResult): number => row.forwardMs + row.backwardMs
  const reference = rows.find(({ path }) => path === 'batchNorm')
  const torch = rows.find(({ path }) => path === 'torch')
  const head = ['', 'forward ms', 'backward ms', 'GB/s', 'of copy', 'to BatchNorm', ...(torch ? ['to PyTorch'] : [])]
  return table([
    head,
    ...rows.map((row) => [
      label(row),
      row.forwardMs.toFixed(3),
      row.backwardMs.toFixed(3),
      row.gigabytesPerSecond.toFixed(1),
      `${((100 * row.gigabytesPerSecond) / copy).toFixed(0)} %`,
      ratio(total(row), reference && total(reference)),
      ...(torch ? [ratio(total(row), total(torch))] : []),
    ]),
  ])
}

function kernelTable(kernels: readonly KernelResult[]): string[] {
  const peer = ['PyTorch forward', 'backward', 'PyTorch ÷ ours, forward', 'both']
  const head = ['', 'forward ms', 'backward ms', 'as a module', 'backward', ...(kernels[0]?.torch ? peer : [])]
  const times = ({ forwardMs, backwardMs }: Times): string[] => [forwardMs.toFixed(3), backwardMs.toFixed(3)]
  const both = ({ forwardMs, backwardMs }: Times): number => forwardMs + backwardMs
  return table([
    head,
    ...kernels.map(({ shape, memoryFormat, ours, module, torch }) => [
      `(${shape.join(', ')}) ${memoryFormat}`,
      ...times(ours),
      ...times(module),
      ...(torch ? [...times(torch), ratio(torch.forwardMs, ours.forwardMs), ratio(both(torch), both(ours))] : []),
    ]),
  ])
}

function exchangeTable(exchanges: readonly ExchangeResult[]): string[] {
  const rows = exchanges.map(({ what, ranks, bytes, p50Us, p99Us }) => [
    `${what}, ${ranks} ranks`,
    String(bytes),
    p50Us.toFixed(1),
    p99Us.toFixed(1),
  ])
  return table([['', 'bytes per rank', 'p50 µs', 'p99 µs'], ...rows])
}

/** How many times `reference` a value is; empty without one. */
export function ratio(value: number, reference: number | undefined): string {
  return reference === undefined ? '' : `${(value / reference).toFixed(2)} ×`
}

/** Rows in columns: the first to the left, the rest to the right. */
export function table(rows: readonly (readonly string[])[]): string[] {
  const widths = (rows[0] as readonly string[]).map((_, i) => Math.max(...rows.map((row) => (row[i] as string).length)))
  return rows.map(
    (row) =>
      `  ${row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] as number) : cell.padStart(widths[i] as number))).join('   ')}`,
  )
}
