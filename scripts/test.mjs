/**
 * Runs every test: builds what is out of date, then the Rust tests, then the TypeScript ones, and sums up.
 *
 *   node scripts/test.mjs              everything
 *   node scripts/test.mjs <arguments>  the TypeScript tests alone, with these arguments for ava
 *
 * The last line is `N passed, N failed`; the exit code is 0 only when nothing failed.
 */
import { main, requireRust, run, StepError, tool } from './steps.mjs'

/** Counts in the text that a test runner writes. */
class Counts {
  passed = 0
  failed = 0
  #text = ''

  read = (text) => {
    this.#text += text
  }

  /** Adds what `pattern` finds: its group `passed` or `failed` holds a number. */
  add(pattern) {
    // Runners colour their summaries.
    const plain = this.#text.replaceAll(/\u001b\[[0-9;]*m/g, '')
    for (const { groups } of plain.matchAll(pattern)) {
      this.passed += Number(groups.passed ?? 0)
      this.failed += Number(groups.failed ?? 0)
    }
  }
}

async function rustTests() {
  requireRust()
  const counts = new Counts()
  const code = await run('cargo', ['test', '--workspace', '--no-fail-fast'], { onText: counts.read })
  counts.add(/^test result: \w+\. (?<passed>\d+) passed; (?<failed>\d+) failed/gm)
  return settle(counts, code)
}

async function typescriptTests(args) {
  const counts = new Counts()
  const code = await run(tool('ava'), args, { onText: counts.read })
  counts.add(/^\s*(?<passed>\d+) tests? passed/gm)
  counts.add(
    /^\s*(?<failed>\d+) (?:tests? failed|uncaught exceptions?|unhandled rejections?|tests? remained pending)/gm,
  )
  return settle(counts, code)
}

/** A runner that fails without a failed test (it did not compile, it crashed) counts as one failure. */
function settle(counts, code) {
  if (code !== 0 && counts.failed === 0) counts.failed = 1
  return counts
}

await main(async (args) => {
  if ((await run(process.execPath, ['scripts/build.mjs', '--if-needed'])) !== 0) {
    throw new StepError('The tests were not run, because the build failed.')
  }
  const results = args.length === 0 ? [await rustTests()] : []
  results.push(await typescriptTests(args))
  const sum = (name) => results.reduce((total, counts) => total + counts[name], 0)
  process.stdout.write(`${sum('passed')} passed, ${sum('failed')} failed\n`)
  return sum('failed') === 0 ? 0 : 1
})
