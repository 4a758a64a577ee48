/**
 * The demo (`npm run demo`): three trainings with equal starting weights, equal batches and an equal order of them.
 *
 * 1. one process, 8 samples per step, ordinary batch norm
 * 2. four ranks, 2 samples each, SyncBatchNorm: the same training, distributed
 * 3. four ranks, 2 samples each, every rank with its own statistics: what happens without it
 *
 * Writes out/digits.svg and out/digits.json beside this file; `--picture PATH` also writes the picture to PATH.
 */
import { spawn } from 'node:child_process'
import { copyFileSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

import { loadSafetensors } from 'syncbn'

import { ProgressBar } from './progress-bar.ts'
import { chart, isAsExpected, sentence, table, type Run } from './report.ts'
import type { TrainingResult } from './train.ts'

interface Plan {
  name: string
  setting: string
  ranks: number
  batchSize: number
  norm: 'sync' | 'local'
}

const PLANS: readonly [Plan, Plan, Plan] = [
  { name: 'single', setting: '1 process × 8, BatchNorm', ranks: 1, batchSize: 8, norm: 'local' },
  { name: 'sync', setting: '4 ranks × 2, SyncBatchNorm', ranks: 4, batchSize: 2, norm: 'sync' },
  { name: 'local', setting: '4 ranks × 2, BatchNorm', ranks: 4, batchSize: 2, norm: 'local' },
]

const pathOf = (relative: string): string => fileURLToPath(new URL(relative, import.meta.url))
const outFolder = pathOf('./out/')
const launcher = fileURLToPath(new URL('./cli/main.js', import.meta.resolve('syncbn')))

const { values: options } = parseArgs({ options: { picture: { type: 'string' } } })
mkdirSync(outFolder, { recursive: true })
const runs = [await perform(PLANS[0]), await perform(PLANS[1]), await perform(PLANS[2])] as const
writeFileSync(`${outFolder}digits.svg`, chart(runs))
writeFileSync(`${outFolder}digits.json`, `${JSON.stringify(runs, null, 2)}\n`)
if (options.picture !== undefined) copyFileSync(`${outFolder}digits.svg`, options.picture)
console.log(`\n${table(runs)}\n\n${sentence(runs)}\n\nPicture: ${outFolder}digits.svg`)
if (!isAsExpected(runs)) process.exitCode = 1

async function perform(plan: Plan): Promise<Run> {
  const out = `${outFolder}${plan.name}`
  await train(plan, out)
  const result = JSON.parse(readFileSync(`${out}.json`, 'utf8')) as TrainingResult
  const difference = plan === PLANS[0] ? null : await largestDifference(`${outFolder}${PLANS[0].name}`, out)
  return { name: plan.name, setting: plan.setting, result, difference }
}

/** Runs one training through the launcher, with a progress bar. */
async function train({ setting, ranks, batchSize, norm }: Plan, out: string): Promise<void> {
  const launch = [launcher, 'launch', '--nproc-per-node', String(ranks)]
  const script = [pathOf('./train.ts'), '--norm', norm, '--batch-size', String(batchSize), '--out', out, '--progress']
  const child = spawn(process.execPath, [...launch, ...script], { stdio: ['ignore', 'pipe', 'inherit'] })
  const ended = new Promise<number | null>((resolve) => child.once('close', resolve))
  const bar = new ProgressBar(setting)
  for await (const line of createInterface({ input: child.stdout })) bar.show(JSON.parse(line.slice('[0] '.length)))
  bar.end()
  const code = await ended
  if (code !== 0) throw new Error(`training '${setting}' ended with exit code ${code}`)
}

async function largestDifference(first: string, second: string): Promise<number> {
  const [expected, actual] = [
    await loadSafetensors(`${first}.safetensors`),
    await loadSafetensors(`${second}.safetensors`),
  ]
  let largest = 0
  for (const [name, tensor] of expected) {
    const [a, b] = [tensor.dataSync(), actual.get(name)?.dataSync()]
    if (b === undefined || b.length !== a.length) throw new Error(`the runs have different tensors '${name}'`)
    a.forEach((value: number | bigint, i: number) => {
      const difference = Math.abs(Number(value) - Number(b[i]))
      if (!(difference <= largest)) largest = difference
    })
  }
  return largest
}
