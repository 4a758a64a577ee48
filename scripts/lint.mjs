/**
 * Checks what needs no test run: formatting, types, Rust lints, and that the committed native types are the built ones.
 *
 *   node scripts/lint.mjs
 *
 * Runs every check and names those that failed; the exit code is 0 only when none did.
 */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { napiArguments } from './build.mjs'
import { main, requireRust, root, run, tool } from './steps.mjs'

const command = (program, ...args) => run(program, args)

/** The TypeScript of tests, examples and benchmarks is checked against the built package, so that comes first. */
const CHECKS = {
  prettier: () => command(tool('prettier'), '--check', '.'),
  'cargo fmt': () => command('cargo', 'fmt', '--all', '--check'),
  clippy: () => command('cargo', 'clippy', '--workspace', '--all-targets', '--', '-D', 'warnings'),
  build: () => command(process.execPath, 'scripts/build.mjs', '--if-needed'),
  'types of src': () => command(tool('tsc'), '-p', 'tsconfig.json', '--noEmit'),
  'types of tests, examples, benches': () => command(tool('tsc'), '-p', 'tsconfig.tools.json'),
  'src/binding.d.ts is the built one': bindingTypesAreFresh,
}

async function bindingTypesAreFresh() {
  const committed = readFileSync(join(root, 'src', 'binding.d.ts'), 'utf8')
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-binding-'))
  try {
    const code = await run(tool('napi'), napiArguments(folder, false))
    if (code !== 0) return code
    return readFileSync(join(folder, 'binding.d.ts'), 'utf8') === committed ? 0 : 1
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

await main(async () => {
  requireRust()
  const failed = []
  for (const [name, check] of Object.entries(CHECKS)) {
    process.stdout.write(`\n== ${name}\n`)
    if ((await check()) !== 0) failed.push(name)
  }
  process.stdout.write(failed.length === 0 ? '\nall checks passed\n' : `\nfailed: ${failed.join('; ')}\n`)
  return failed.length === 0 ? 0 : 1
})
