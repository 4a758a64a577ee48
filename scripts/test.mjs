/**
 * Runs every test: builds what is out of date, then the Rust tests, then the TypeScript ones, on the CPU and on fake
 * GPUs, and sums up.
 *
 *   node scripts/test.mjs              everything
 *   node scripts/test.mjs <arguments>  the TypeScript tests on the CPU alone, with these arguments for ava
 *
 * What runs on fakes runs the real kernels on the CPU; it says nothing about a GPU. SYNCBN_FAKE_SANITIZERS=0 leaves out
 * the kernels under sanitizers, which take the longest. The last line is `N passed, N failed`; the exit code is 0 only
 * when nothing failed.
 */
import { stripVTControlCharacters } from 'node:util'

import { fakesFolder, main, requireRust, run, tool } from './steps.mjs'

/** Counts in the text that a test runner writes. */
class Counts {
  passed = 0
  failed = 0
  #text = ''

  read = (text) => {
    this.#text += text
  }

  /** Everything read, without the colours of terminals. */
  get text() {
    return stripVTControlCharacters(this.#text)
  }
}

async function rustTests() {
  requireRust()
  const counts = new Counts()
  const env = { SYNCBN_FAKE_SANITIZERS: '1', ...process.env }
  const code = await run('cargo', ['test', '--workspace', '--no-fail-fast'], { onText: counts.read, env })
  for (const [, passed, failed] of counts.text.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed/gm)) {
    counts.passed += Number(passed)
    counts.failed += Number(failed)
  }
  return settle(counts, code)
}

async function typescriptTests(args, env = process.env) {
  const counts = new Counts()
  const code = await run(tool('ava'), args, { onText: counts.read, env })
  counts.passed = counts.text.match(/^\s*✔ /gm)?.length ?? 0
  // A test that fails, a file that crashes, a process that hangs: ava marks each with a cross.
  counts.failed = counts.text.match(/^\s*✘ /gm)?.length ?? 0
  return settle(counts, code)
}

async function typescriptTestsOnFakes() {
  if (process.platform !== 'linux') return new Counts()
  const fakes = { LD_LIBRARY_PATH: fakesFolder(), SYNCBN_FAKE_CUDA: '1', FAKE_CUDA_DEVICES: '4' }
  // Freed memory becomes NaN, so that a use of it shows.
  const env = { ...process.env, ...fakes, SYNCBN_CUDA_POISON: '1' }
  return typescriptTests(['__test__/cuda/**/*.spec.ts'], env)
}

/** A runner that fails without a failed test (it did not compile, it crashed) counts as one failure. */
function settle(counts, code) {
  if (code !== 0 && counts.failed === 0) counts.failed = 1
  return counts
}

const PARTS = {
  'Rust, with kernels, driver and NCCL on fakes': rustTests,
  'TypeScript on the CPU': () => typescriptTests([]),
  'TypeScript on fake GPUs (not a GPU result)': typescriptTestsOnFakes,
}

async function all() {
  const results = []
  for (const [name, part] of Object.entries(PARTS)) {
    process.stdout.write(`\n== ${name}\n`)
    results.push([name, await part()])
  }
  process.stdout.write('\n')
  for (const [name, { passed, failed }] of results) {
    process.stdout.write(`${name}: ${passed} passed, ${failed} failed\n`)
  }
  return results.map(([, counts]) => counts)
}

await main(async (args) => {
  if ((await run(process.execPath, ['scripts/build.mjs', '--if-needed'])) !== 0) {
    process.stdout.write('The tests were not run, because the build failed.\n0 passed, 1 failed\n')
    return 1
  }
  const results = args.length === 0 ? await all() : [await typescriptTests(args)]
  const sum = (name) => results.reduce((total, counts) => total + counts[name], 0)
  process.stdout.write(`${sum('passed')} passed, ${sum('failed')} failed\n`)
  return sum('failed') === 0 ? 0 : 1
})
