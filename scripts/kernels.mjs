/**
 * The committed PTX of crates/cuda/kernels: makes it, and checks it without a GPU.
 *
 *   node scripts/kernels.mjs build                        kernels/*.cu -> ptx/*.ptx
 *   node scripts/kernels.mjs check [--registers]          all of the checks below; --registers lists every kernel's
 *   node scripts/kernels.mjs check --if-possible          says so, and passes, where there is no compiler; not in CI
 *
 * Checked are: that the PTX is what nvcc makes of the sources, byte for byte; that ptxas assembles it for every
 * architecture it knows, without spilling registers; that tensors are moved in whole vectors and nothing in bytes; and
 * that every entry point has the one parameter that the Rust side passes (`cargo xtask kernel-table`), and no other
 * exists.
 *
 * The compiler comes from the wheels in nvcc-requirements.txt and is kept in target/nvcc. SYNCBN_NVCC names another
 * nvcc, with ptxas beside it. The last line of a check that passed is `kernels: N entries, N architectures, ok`.
 */
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

import { architectures, assembleAll } from './kernels/assembler.mjs'
import { compileAll, entries, KERNELS } from './kernels/compiler.mjs'
import { compareEntries, rustTable } from './kernels/table.mjs'
import { MissingToolchain, toolchain } from './kernels/toolchain.mjs'
import { checkVectors } from './kernels/vectors.mjs'
import { main, root, StepError } from './steps.mjs'

const PTX = join(root, 'crates', 'cuda', 'ptx')
const OPTIONS = ['--if-possible', '--registers']
const USAGE = `usage: node scripts/kernels.mjs build | check [${OPTIONS.join('] [')}]`

/** The committed files: name without ending -> text. */
function committed() {
  const names = readdirSync(PTX).filter((name) => name.endsWith('.ptx'))
  return new Map(names.sort().map((name) => [name.slice(0, -'.ptx'.length), readFileSync(join(PTX, name), 'utf8')]))
}

async function build() {
  const before = committed()
  const made = await compileAll(await toolchain())
  for (const [name, text] of made) {
    if (before.get(name) !== text) writeFileSync(join(PTX, `${name}.ptx`), text)
  }
  const stale = [...before.keys()].filter((name) => !made.has(name))
  for (const name of stale) rmSync(join(PTX, `${name}.ptx`))
  const changed = [...made].filter(([name, text]) => before.get(name) !== text).length
  say(`kernels: ${made.size} files, ${changed} written, ${stale.length} removed`)
}

async function check({ everyKernel }) {
  const tools = await toolchain()
  const texts = committed()
  say('== committed PTX is what nvcc makes of the sources')
  const problems = report(compareTexts(texts, await compileAll(tools)))
  const targets = await architectures(tools)
  say(`== assembles for ${targets.join(' ')} without spills`)
  const { problems: refused, registers } = await assembleAll(tools, texts, targets)
  problems.push(...report(refused))
  say(registersTable(registers, targets, everyKernel))
  say('== tensors move in vectors')
  const { problems: scattered, checked } = checkVectors(texts)
  problems.push(...report(scattered))
  say(`${checked} entries`)
  say('== entry points are those of the Rust side')
  const found = [...texts].flatMap(([name, text]) => entries(name, text))
  problems.push(...report(compareEntries(found, await rustTable())))
  if (problems.length > 0) throw new StepError(`kernels: ${problems.length} problems`)
  say(`kernels: ${found.length} entries, ${targets.length} architectures, ok`)
}

/** @returns {string[]} how the committed texts differ from the made ones */
function compareTexts(texts, made) {
  const missing = [...made.keys()].filter((name) => !texts.has(name)).map((name) => `${name}.ptx is missing`)
  const differing = [...texts].flatMap(([name, text]) => {
    if (!made.has(name)) return [`${name}.ptx has no ${KERNELS}/${name}.cu`]
    return made.get(name) === text
      ? []
      : [`${name}.ptx is stale, from line ${firstDifference(text, made.get(name))} on`]
  })
  const all = [...missing, ...differing]
  return all.length === 0 ? [] : [...all, 'run `node scripts/kernels.mjs build` and commit crates/cuda/ptx']
}

function firstDifference(text, other) {
  const lines = other.split('\n')
  return text.split('\n').findIndex((line, i) => line !== lines[i]) + 1
}

/**
 * The registers a thread needs, as columns of architectures: the most of each file, or all of its kernels'.
 *
 * @param {{ module: string, entry: string, architecture: string, registers: number }[]} rows
 */
function registersTable(rows, targets, everyKernel) {
  const byName = new Map()
  for (const { module, entry, architecture, registers } of rows) {
    const name = everyKernel ? `${module}: ${entry}` : module
    const columns = byName.get(name) ?? new Map()
    byName.set(name, columns.set(architecture, Math.max(registers, columns.get(architecture) ?? 0)))
  }
  const title = everyKernel ? 'registers of each kernel' : 'registers, the most in each file'
  const width = Math.max(title.length, ...[...byName.keys()].map((name) => name.length))
  const line = (name, cells) => [name.padEnd(width), ...cells.map((cell) => String(cell ?? '-').padStart(6))].join(' ')
  const body = [...byName].map(([name, columns]) =>
    line(
      name,
      targets.map((target) => columns.get(target)),
    ),
  )
  return [line(title, targets), ...body].join('\n')
}

function report(problems) {
  for (const problem of problems) say(`  ${problem}`)
  return problems
}

function say(text) {
  process.stdout.write(`${text}\n`)
}

await main(async ([command, ...options]) => {
  if (options.some((option) => command !== 'check' || !OPTIONS.includes(option))) throw new StepError(USAGE)
  if (command === 'build') await build()
  else if (command === 'check') await checkOrSkip(options)
  else throw new StepError(USAGE)
  return 0
})

async function checkOrSkip(options) {
  try {
    await check({ everyKernel: options.includes('--registers') })
  } catch (error) {
    const maySkip = options.includes('--if-possible') && !process.env.CI
    if (!(error instanceof MissingToolchain && maySkip)) throw error
    say(`kernels: SKIPPED, not checked: ${error.message}`)
  }
}
