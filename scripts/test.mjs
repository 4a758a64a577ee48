/**
 * Runs every test: builds what is out of date, then the Rust tests, then the TypeScript ones, and sums up.
 *
 *   node scripts/test.mjs              everything
 *   node scripts/test.mjs <arguments>  the TypeScript tests alone, with these arguments for ava
 *
 * The last line is `N passed, N failed`; the exit code is 0 only when nothing failed.
 */
import { stripVTControlCharacters } from 'node:util'

import { main, requireRust, run, tool } from './steps.mjs'

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
  const code = await run('cargo', ['test', '--workspace', '--no-fail-fast'], { onText: counts.read })
  for (const [, passed, failed] of counts.text.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed/gm)) {
    counts.passed += Number(passed)
    counts.failed += Number(failed)
  }
  return settle(counts, code)
}

async function typescriptTests(args) {
  const counts = new Counts()
  const code = await run(tool('ava'), args, { onText: counts.read })
  counts.passed = counts.text.match(/^\s*✔ /gm)?.length ?? 0
  // A test that fails, a file that crashes, a process that hangs: ava marks each with a cross.
  counts.failed = counts.text.match(/^\s*✘ /gm)?.length ?? 0
  return settle(counts, code)
}

/** A runner that fails without a failed test (it did not compile, it crashed) counts as one failure. */
function settle(counts, code) {
  if (code !== 0 && counts.failed === 0) counts.failed = 1
  return counts
}

await main(async (args) => {
  if ((await run(process.execPath, ['scripts/build.mjs', '--if-needed'])) !== 0) {
    process.stdout.write('The tests were not run, because the build failed.\n0 passed, 1 failed\n')
    return 1
  }
  const results = args.length === 0 ? [await rustTests()] : []
  results.push(await typescriptTests(args))
  const sum = (name) => results.reduce((total, counts) => total + counts[name], 0)
  process.stdout.write(`${sum('passed')} passed, ${sum('failed')} failed\n`)
  return sum('failed') === 0 ? 0 : 1
})
