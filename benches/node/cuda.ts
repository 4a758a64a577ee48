/**
 * The benchmark of a GPU (`npm run bench -- --device cuda`): the kernels of SyncBatchNorm and of plain batch norm, with
 * --peers in turn with PyTorch's, on the same card in the same run.
 *
 * Kernels are timed by the device's events on recorded work, so that launches from Rust or Python do not count; the
 * exchange between ranks is replaced by work on the device. `as a module` is launched from JavaScript. A number is the
 * median over all turns after warm-up. With --peers results are compared before anything is timed.
 *
 * Writes benches/results/cuda-CARD.json (cuda-CARD-quick.json with --quick), but nothing on a fake device.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { cuda, SyncBatchNorm, tensor, tidy, type Device } from 'syncbn'

import { native } from '../../dist/native.js'

import { ourSamples, pattern, requireAgreement } from './cuda-check.ts'
import { goals, goalsReport } from './cuda-goals.ts'
import { bytesOfTensor, cudaProblems, nameOf, type CudaProblem } from './cuda-problems.ts'
import { cudaReport, type CudaResult, type CudaResults, type CudaTimes } from './cuda-results.ts'
import { options, say } from './options.ts'
import { TorchCuda, whyNoPeers, type TorchCudaTimes, type TorchWay } from './peers.ts'
import { median } from './results.ts'

const DEVICE: Device = 'cuda:0'
/** Slots of SyncBatchNorm's message: a machine full of GPUs. */
const RANKS = 8
/** Passes over the input that cannot be avoided: read twice and write; read two twice and write. */
const PASSES = { forward: 3, backward: 5 } as const
const COPY_BYTES = 2 ** 28
const SAMPLES = 1000
/** Larger problems run the same kernels; to compare them would take longer than to time them. */
const LARGEST_COMPARED = 64e6

const reason = native.cudaUnavailableReason()
if (reason !== null) throw new Error(`bench --device cuda needs a GPU: ${reason}`)
const { driver, devices } = native.cudaInfo()
const card = devices[0]!
const isFake = card.name.includes('Fake')
const rounds = isFake || options.quick ? 1 : 3
const iterations = isFake ? 2 : options.quick ? 10 : 20

const obstacle = options.peers ? whyNoPeers({ gpu: true }) : null
if (obstacle !== null) say(obstacle)
const torch = options.peers && obstacle === null ? new TorchCuda() : null
const copyBytes = isFake ? 2 ** 16 : COPY_BYTES
const copyGigabytesPerSecond = gigabytesPerSecond(2 * copyBytes, ourCopy())
const problems: CudaResult[] = []
for (const problem of cudaProblems(isFake ? 'tiny' : options.quick ? 'quick' : 'all')) {
  say(nameOf(problem))
  problems.push(await measure(problem))
}
const measured: CudaResults = {
  card: card.name,
  computeCapability: card.computeCapability,
  driver: driver ?? 'unknown',
  node: process.versions.node,
  ranks: RANKS,
  copyGigabytesPerSecond,
  ...(torch && {
    torch: await torch.versions(),
    torchCopyGigabytesPerSecond: gigabytesPerSecond(2 * copyBytes, await torch.copy(copyBytes, iterations)),
  }),
  quick: options.quick,
  problems,
}
const results: CudaResults = { ...measured, goals: goals(measured) }
await torch?.end()
if (isFake) say('nothing is written: these are not the times of a GPU')
else write(results)
const report = (): string => [cudaReport(results), ...goalsReport(results.goals ?? [])].join('\n')
console.log(options.json ? JSON.stringify(results, null, 2) : report())

function write(results: CudaResults): void {
  const folder = fileURLToPath(new URL('../results/', import.meta.url))
  const name = results.card.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-')
  mkdirSync(folder, { recursive: true })
  const file = `${folder}cuda-${name}${options.quick ? '-quick' : ''}.json`
  writeFileSync(file, `${JSON.stringify(results, null, 2)}\n`)
  say(`written: ${file}`)
}

function gigabytesPerSecond(bytes: number, milliseconds: number): number {
  return bytes / milliseconds / 1e6
}

/** Milliseconds of the faster way to copy. */
function ourCopy(): number {
  const { driver, kernel } = native.timeCudaCopy(DEVICE, copyBytes, iterations)
  return Math.min(median(driver), median(kernel))
}

async function measure(problem: CudaProblem): Promise<CudaResult> {
  const bytes = bytesOfTensor(problem)
  if (torch && bytes <= LARGEST_COMPARED) {
    const theirs = await torch.verify(problem, RANKS, SAMPLES)
    requireAgreement(
      problem,
      tidy(() => ourSamples(problem, DEVICE, SAMPLES)),
      theirs,
    )
  }
  const ours: CudaTimes[] = []
  const theirs: TorchCudaTimes[] = []
  const [modules, layers]: [number[], number[]] = [[], []]
  for (let round = 0; round < rounds; round += 1) {
    ours.push(ourTimes(problem))
    modules.push(await ourModule(problem))
    if (!torch) continue
    theirs.push(await torch.measure(problem, RANKS, iterations))
    layers.push(await torch.layer(problem, iterations))
  }
  const times = medians(ours)
  return {
    ...problem,
    bytes,
    ours: times,
    gigabytesPerSecond: {
      forward: gigabytesPerSecond(PASSES.forward * bytes, times.syncForward),
      backward: gigabytesPerSecond(PASSES.backward * bytes, times.syncBackward),
    },
    moduleMs: median(modules),
    ...(torch && { torch: mediansOfTorch(theirs), torchLayerMs: median(layers) }),
  }
}

function ourTimes({ shape, memoryFormat, dtype }: CudaProblem): CudaTimes {
  const times = native.timeCudaBatchNorm(DEVICE, [...shape], memoryFormat, dtype, RANKS, iterations)
  return Object.fromEntries(Object.entries(times).map(([part, ms]) => [part, median(ms)])) as unknown as CudaTimes
}

/** Milliseconds of a module's call and its backward, launched one after another. */
async function ourModule({ shape, memoryFormat, dtype }: CudaProblem): Promise<number> {
  const length = shape.reduce((a, b) => a * b, 1)
  const draw = (factor: number, requiresGrad: boolean) =>
    tensor(pattern(length, factor, 0), { shape, dtype, memoryFormat, device: DEVICE, requiresGrad })
  const [input, gradOutput] = [draw(40_503, true), draw(30_011, false)]
  const layer = new SyncBatchNorm(shape[1] as number, { device: DEVICE })
  const step = (): void =>
    tidy(() => {
      layer.call(input).backward(gradOutput)
      input.grad = null
      layer.zeroGrad()
    })
  step()
  await cuda.synchronize(DEVICE)
  const start = performance.now()
  for (let i = 0; i < iterations; i += 1) step()
  await cuda.synchronize(DEVICE)
  const milliseconds = (performance.now() - start) / iterations
  for (const used of [input, gradOutput]) used.dispose()
  return milliseconds
}

function medians(turns: readonly CudaTimes[]): CudaTimes {
  const parts = Object.keys(turns[0] as CudaTimes) as (keyof CudaTimes)[]
  return Object.fromEntries(
    parts.map((part) => [part, median(turns.map((turn) => turn[part]))]),
  ) as unknown as CudaTimes
}

function mediansOfTorch(turns: readonly TorchCudaTimes[]): TorchCudaTimes {
  const over = <T>(part: (turn: TorchCudaTimes) => T): T => medianOf(turns.map(part) as (number | TorchWay)[]) as T
  const parts = Object.keys(turns[0] as TorchCudaTimes) as (keyof TorchCudaTimes)[]
  return Object.fromEntries(parts.map((part) => [part, over((turn) => turn[part])])) as unknown as TorchCudaTimes
}

/** Of numbers, or of both times of an implementation; one that does not take the input never does. */
function medianOf(values: readonly (number | TorchWay)[]): number | TorchWay {
  const numbers = values.filter((value) => typeof value === 'number')
  if (numbers.length > 0) return median(numbers)
  const ways = values.filter((value) => typeof value === 'object' && 'forwardMs' in value)
  if (ways.length === 0) return values[0] as TorchWay
  return { forwardMs: median(ways.map((way) => way.forwardMs)), backwardMs: median(ways.map((way) => way.backwardMs)) }
}
