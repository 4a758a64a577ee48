/**
 * The benchmark of the CPU: batch norm layers on 1, 2 and 4 ranks against BatchNorm in one process, and the exchange of
 * statistics by itself.
 *
 * The ranks split the batch and the cores, so that every way does the same work. Everything is measured in turns, with
 * all processes alive and all but one job idle; a number is the median over all turns after warm-up, of the slowest
 * rank. Writes benches/results/node.json and node.svg (node-quick.* with --quick).
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { fileURLToPath } from 'node:url'

import { chart } from './chart.ts'
import { Job, threadsPerRank } from './job.ts'
import { options, say } from './options.ts'
import { glooAllGather, TorchBatchNorm, whyNoPeers } from './peers.ts'
import { bytesOf, kernelProblems, problems, type Problem } from './problems.ts'
import type { Answer, Path } from './rank.ts'
import {
  median,
  quantile,
  report,
  type ExchangeResult,
  type KernelResult,
  type LayerResult,
  type Results,
} from './results.ts'

const SIZES = [1, 2, 4] as const
/** Passes over the input that forward and backward cannot do without: read twice and write; read two twice and write. */
const PASSES = 8
/** Channels whose count, means and squared deviations make 6 KB. */
const EXCHANGE_CHANNELS = 384
const EXCHANGE_BYTES = 8 + 16 * EXCHANGE_CHANNELS
const COPY_BYTES = 128 * 2 ** 20

const rounds = options.quick ? 2 : 5
const iterations = options.quick ? 5 : 8
const exchangeIterations = options.quick ? 500 : 2000

const obstacle = options.peers ? whyNoPeers() : null
if (obstacle !== null) say(obstacle)
const torch = options.peers && obstacle === null ? new TorchBatchNorm() : null
const jobs = await Promise.all(SIZES.map((size) => Job.start(size)))

const copyGigabytesPerSecond = await copyBandwidth()
const layers: LayerResult[] = []
for (const problem of problems(options.quick)) {
  say(`${problem.network} (${problem.shape.join(', ')}) ${problem.memoryFormat}`)
  layers.push(...(await measureLayer(problem)))
}
const kernels: KernelResult[] = []
for (const problem of kernelProblems(options.quick)) {
  say(`kernels ${problem.shape.join(', ')} ${problem.memoryFormat}`)
  kernels.push(await measureKernels(problem))
}
say('exchange of statistics')
const exchanges = await measureExchanges()
const results: Results = {
  machine: {
    processor: cpus()[0]?.model.trim() ?? 'unknown processor',
    cores: availableParallelism(),
    node: process.versions.node,
    copyGigabytesPerSecond,
    ...(torch && { torch: await torch.versions() }),
  },
  quick: options.quick,
  layers,
  kernels,
  exchanges,
}
await Promise.all([...jobs.map((job) => job.end()), torch?.end()])

const folder = fileURLToPath(new URL('../results/', import.meta.url))
const file = `${folder}node${options.quick ? '-quick' : ''}`
mkdirSync(folder, { recursive: true })
writeFileSync(`${file}.json`, `${JSON.stringify(results, null, 2)}\n`)
writeFileSync(`${file}.svg`, chart(results))
console.log(options.json ? JSON.stringify(results, null, 2) : report(results))

/** The most that any number of processes copies at once. */
async function copyBandwidth(): Promise<number> {
  let best = 0
  for (const job of jobs) {
    const bytes = COPY_BYTES / job.size
    const { first } = await job.ask({ kind: 'copy', bytes, iterations: 10 })
    best = Math.max(best, (2 * COPY_BYTES) / median(first) / 1e6)
  }
  return best
}

interface Way {
  path: Path | 'torch'
  ranks: number
  measure: () => Promise<Answer>
}

async function measureLayer(problem: Problem): Promise<LayerResult[]> {
  const ways = waysOf(problem)
  const answers = ways.map((): Answer => ({ first: [], second: [] }))
  for (let round = 0; round < rounds; round += 1) {
    for (const [i, way] of ways.entries()) {
      const { first, second } = await way.measure()
      answers[i]?.first.push(...first)
      answers[i]?.second.push(...second)
    }
  }
  return ways.map(({ path, ranks }, i) => {
    const [forwardMs, backwardMs] = [median(answers[i]?.first ?? []), median(answers[i]?.second ?? [])]
    const gigabytesPerSecond = (PASSES * bytesOf(problem.shape)) / (forwardMs + backwardMs) / 1e6
    return { ...problem, path, ranks, forwardMs, backwardMs, gigabytesPerSecond }
  })
}

function waysOf(problem: Problem): Way[] {
  const { shape, memoryFormat } = problem
  const ours = (path: Path, job: Job): Way => ({
    path,
    ranks: job.size,
    measure: () => job.ask({ kind: 'layer', path, shape, memoryFormat, iterations }),
  })
  const peer = (process: TorchBatchNorm): Way => ({
    path: 'torch',
    ranks: 1,
    measure: async () => {
      const answer = await process.measure(problem, iterations, threadsPerRank(1))
      return { first: [answer.medianForwardMs], second: [answer.medianBackwardMs] }
    },
  })
  return [
    ours('batchNorm', jobs[0] as Job),
    ...jobs.map((job) => ours('module', job)),
    ...jobs.map((job) => ours('functional', job)),
    ...(torch ? [peer(torch)] : []),
  ]
}

/** The kernels by themselves and PyTorch's, in turn, both on reused memory. */
async function measureKernels(problem: Problem): Promise<KernelResult> {
  const { shape, memoryFormat } = problem
  const empty = (): Answer => ({ first: [], second: [] })
  const [ours, called, theirs] = [empty(), empty(), empty()]
  const measure = async (into: Answer, way: { kind: 'kernels' } | { kind: 'layer'; path: Path }): Promise<void> => {
    const answer = await (jobs[0] as Job).ask({ ...way, shape, memoryFormat, iterations })
    into.first.push(...answer.first)
    into.second.push(...answer.second)
  }
  for (let round = 0; round < rounds; round += 1) {
    await measure(ours, { kind: 'kernels' })
    await measure(called, { kind: 'layer', path: 'module' })
    if (!torch) continue
    const peer = await torch.measure(problem, iterations, threadsPerRank(1), { fresh: false })
    theirs.first.push(peer.medianForwardMs)
    theirs.second.push(peer.medianBackwardMs)
  }
  const medians = ({ first, second }: Answer) => ({ forwardMs: median(first), backwardMs: median(second) })
  return { ...problem, ours: medians(ours), module: medians(called), ...(torch && { torch: medians(theirs) }) }
}

async function measureExchanges(): Promise<ExchangeResult[]> {
  const measured: ExchangeResult[] = []
  const iterations = exchangeIterations
  for (const job of jobs.filter(({ size }) => size > 1)) {
    const requests = {
      all_gather: { kind: 'allGather', bytes: EXCHANGE_BYTES, iterations },
      'gatherStats()': { kind: 'gatherStats', channels: EXCHANGE_CHANNELS, iterations },
    } as const
    for (const [what, request] of Object.entries(requests)) {
      const microseconds = (await job.askFirst(request)).first.map((ms) => 1000 * ms)
      const [p50Us, p99Us] = [quantile(microseconds, 0.5), quantile(microseconds, 0.99)]
      measured.push({ what, ranks: job.size, bytes: EXCHANGE_BYTES, p50Us, p99Us })
    }
    if (!torch) continue
    const gloo = await glooAllGather(job.size, EXCHANGE_BYTES)
    measured.push({ what: 'gloo all_gather', ranks: job.size, bytes: EXCHANGE_BYTES, ...gloo })
  }
  return measured
}
