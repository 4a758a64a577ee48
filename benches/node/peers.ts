/** PyTorch on the same machine, for comparison: the programs in benches/peers. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

import { freePort } from '../../dist/cli/free-port.js'
import type { CudaProblem } from './cuda-problems.ts'
import type { Problem } from './problems.ts'

const pathOf = (name: string): string => fileURLToPath(new URL(`../peers/${name}`, import.meta.url))
const python = process.env.SYNCBN_PYTHON ?? 'python3'

/** Milliseconds of PyTorch's batch norm. */
export interface PeerAnswer {
  medianForwardMs: number
  medianBackwardMs: number
}

const IMPORTS = 'import torch'
const SEES_A_GPU = 'import torch; torch.zeros(1, device="cuda")'

/** Null when the peers can run, on a GPU if `gpu` says so, else one sentence that says why not. */
export function whyNoPeers({ gpu = false } = {}): string | null {
  const program = gpu ? SEES_A_GPU : IMPORTS
  const { error, status, stderr } = spawnSync(python, ['-c', program], { encoding: 'utf8' })
  if (error) return `no peers: ${python} cannot be started (${error.message}); set SYNCBN_PYTHON to a Python with torch`
  if (status === 0) return null
  const reason = stderr.trim().split('\n').at(-1)
  return `no peers: ${python} cannot use torch (${reason}); set SYNCBN_PYTHON to a Python that can`
}

/** A program of benches/peers that answers one request at a time, both as a line of JSON. */
class Peer {
  readonly #child: ChildProcess
  readonly #lines: AsyncIterator<string>

  constructor(program: string) {
    this.#child = spawn(python, [pathOf(program)], { stdio: ['pipe', 'pipe', 'inherit'] })
    this.#lines = createInterface({ input: this.#child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]()
  }

  async ask(request: object): Promise<Record<string, unknown>> {
    this.#child.stdin?.write(`${JSON.stringify(request)}\n`)
    const { value, done } = await this.#lines.next()
    if (done) throw new Error('the PyTorch process ended')
    const answer = JSON.parse(value) as Record<string, unknown>
    if (answer['error'] !== undefined) throw new Error(`PyTorch: ${String(answer['error'])}`)
    return answer
  }

  /** The versions that are compared with. */
  versions(): Promise<Record<string, unknown>> {
    return this.ask({ op: 'versions' })
  }

  async end(): Promise<void> {
    const ended = once(this.#child, 'exit')
    this.#child.stdin?.end()
    await ended
  }
}

/** PyTorch on the CPU. */
export class TorchBatchNorm extends Peer {
  constructor() {
    super('batch_norm_torch.py')
  }

  /** `fresh`: a new output for every call, as users call it; else into one that is reused. */
  async measure(
    { shape, memoryFormat }: Pick<Problem, 'shape' | 'memoryFormat'>,
    iterations: number,
    threads: number,
    { fresh = true } = {},
  ): Promise<PeerAnswer> {
    const request = { op: 'batchNorm', shape, memoryFormat, phase: 'forwardBackward', iterations, threads, fresh }
    return (await this.ask(request)) as unknown as PeerAnswer
  }
}

/** PyTorch's batch norm of one rank by one implementation, or why there is none for this input. */
export type TorchWay = { forwardMs: number; backwardMs: number } | { unavailable: string }

/** Milliseconds of PyTorch's kernels on the device. */
export interface TorchCudaTimes {
  stats: number
  mergeAndNormalize: number
  backwardReduce: number
  backwardApply: number
  syncForward: number
  syncBackward: number
  cudnn: TorchWay
  native: TorchWay
}

/** Some elements of each result, evenly spaced in the order of the indices. */
export interface Samples {
  y: number[]
  dx: number[]
  gradWeight: number[]
  gradBias: number[]
}

/** PyTorch on the GPU. */
export class TorchCuda extends Peer {
  constructor() {
    super('batch_norm_torch_cuda.py')
  }

  async measure(problem: CudaProblem, ranks: number, iterations: number): Promise<TorchCudaTimes> {
    return (await this.ask({ op: 'batchNorm', ...problem, ranks, iterations })) as unknown as TorchCudaTimes
  }

  /** Results of SyncBatchNorm's kernels, which agree with those of `F.batch_norm`. */
  async verify(problem: CudaProblem, ranks: number, samples: number): Promise<Samples> {
    return (await this.ask({ op: 'verify', ...problem, ranks, samples })) as unknown as Samples
  }

  /** Milliseconds of one `F.batch_norm` and its backward, called from Python. */
  async layer(problem: CudaProblem, iterations: number): Promise<number> {
    return (await this.ask({ op: 'layer', ...problem, iterations }))['ms'] as number
  }

  /** Milliseconds of PyTorch's copy of so many bytes. */
  async copy(bytes: number, iterations: number): Promise<number> {
    return (await this.ask({ op: 'copy', bytes, iterations }))['ms'] as number
  }
}

/** gloo's all_gather of `bytes` between `size` processes: microseconds. */
export async function glooAllGather(size: number, bytes: number): Promise<{ p50Us: number; p99Us: number }> {
  const environment = {
    ...process.env,
    WORLD_SIZE: String(size),
    MASTER_ADDR: '127.0.0.1',
    MASTER_PORT: String(await freePort()),
  }
  const ranks = Array.from({ length: size }, (_, rank) =>
    spawn(python, [pathOf('all_gather_gloo.py'), String(bytes)], {
      stdio: ['ignore', 'pipe', 'inherit'],
      env: { ...environment, RANK: String(rank) },
    }),
  )
  let output = ''
  ranks[0]?.stdout.on('data', (text: Buffer) => (output += text.toString()))
  const codes = await Promise.all(ranks.map(async (rank) => (await once(rank, 'close'))[0] as number | null))
  if (codes.some((code) => code !== 0)) throw new Error(`gloo's all_gather ended with exit codes ${codes}`)
  return JSON.parse(output) as { p50Us: number; p99Us: number }
}
