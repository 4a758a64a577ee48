/**
 * The documentation is true: every TypeScript block is type-checked and run, every command is run or checked, every
 * link leads somewhere, and the tables of errors, exports and tests agree with the code.
 *
 * Flags of a block, after its language: `launch=N` runs it on N ranks; `file=NAME` gives it a name, for a command in the
 * same document that launches it; a `text output` block holds what the block before it prints.
 */
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'
import * as syncbn from 'syncbn'
import * as functional from 'syncbn/functional'

import { errorKinds, makeError } from '../dist/errors.js'
import { anchorsOf, blocksOf, localLinks, tableRows, title, type Block } from './documentation/markdown.ts'
import { commandsOf, judge } from './documentation/shell.ts'

const root = fileURLToPath(new URL('..', import.meta.url))
const launcher = join(root, 'dist', 'cli', 'main.js')
/** Inside the repository, so that 'syncbn' is found; ignored by git. */
const scratch = join(root, 'target', `documentation-${process.pid}`)
const DEADLINE = 120_000

const inDocs = readdirSync(join(root, 'docs')).filter((name) => name.endsWith('.md'))
const guides = ['README.md', 'CONTRIBUTING.md', ...inDocs.map((name) => `docs/${name}`)]
const documents = [...guides, 'ARCHITECTURE.md', 'CHANGELOG.md', 'SECURITY.md']
const text = Object.fromEntries(documents.map((name) => [name, readFileSync(join(root, name), 'utf8')]))
const blocks = documents.flatMap((name) => blocksOf(name, text[name] as string))

const folderOf = ({ document }: Block): string => join(scratch, document.replaceAll(/\W/g, '-'))
const pathOf = (block: Block): string => join(folderOf(block), block.flags.get('file') ?? `line-${block.line}.ts`)
const isProgram = ({ language }: Block): boolean => language === 'ts'

test.before(() => {
  for (const block of blocks.filter(isProgram)) {
    mkdirSync(folderOf(block), { recursive: true })
    writeFileSync(pathOf(block), block.text)
  }
})
test.after.always(() => rmSync(scratch, { recursive: true, force: true }))

interface Ended {
  code: number | null
  stdout: string
  all: string
}

/** Runs a program; it is killed when it takes too long. */
function run(program: string, args: string[], cwd: string): Promise<Ended> {
  const child = spawn(program, args, {
    cwd,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: DEADLINE,
    killSignal: 'SIGKILL',
  })
  const ended = { stdout: '', all: '' }
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    ended.stdout += chunk
    ended.all += chunk
  })
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => (ended.all += chunk))
  return new Promise((resolve, reject) => {
    child.once('error', reject)
    child.once('close', (code) => resolve({ code, ...ended }))
  })
}

/** What the block right after this one says is printed; null if it says nothing. */
function expectedOutput(block: Block): string | null {
  const next = blocks[blocks.indexOf(block) + 1]
  return next?.document === block.document && next.flags.has('output') ? next.text : null
}

/** Lines of ranks come in any order. */
const sorted = (output: string): string => output.trimEnd().split('\n').sort().join('\n')

test('blocks are of kinds that are checked', (t) => {
  for (const block of blocks) t.true(['ts', 'sh', 'json', 'text', ''].includes(block.language), title(block))
  for (const block of blocks.filter(({ language }) => language === 'json')) t.notThrows(() => JSON.parse(block.text))
  t.true(blocks.filter(isProgram).length >= 10)
})

test('named programs are launched by a command of their document', (t) => {
  for (const block of blocks.filter(({ flags }) => flags.has('file'))) {
    const commands = blocks.filter(({ document, language }) => document === block.document && language === 'sh')
    const name = block.flags.get('file') as string
    t.true(
      commands.some((command) => command.text.includes(` ${name}`)),
      title(block),
    )
  }
})

test.serial('the programs are well typed', async (t) => {
  const config = {
    extends: '../../tsconfig.tools.json',
    compilerOptions: { rootDir: root, noUnusedLocals: false },
    include: ['./**/*.ts'],
  }
  writeFileSync(join(scratch, 'tsconfig.json'), JSON.stringify(config))
  const tsc = join(root, 'node_modules', '.bin', 'tsc')
  const { code, all } = await run(tsc, ['-p', join(scratch, 'tsconfig.json')], scratch)
  t.is(code, 0, all)
})

for (const block of blocks.filter((block) => isProgram(block) && !block.flags.has('file'))) {
  test.serial(`runs: ${title(block)}`, async (t) => {
    t.timeout(DEADLINE)
    const ranks = block.flags.get('launch')
    const args =
      ranks === undefined
        ? ['--import', '@oxc-node/core/register', pathOf(block)]
        : [launcher, 'launch', '--nproc-per-node', ranks, pathOf(block)]
    const { code, stdout, all } = await run(process.execPath, args, folderOf(block))
    t.is(code, 0, all)
    const expected = expectedOutput(block)
    if (expected !== null) t.is(sorted(stdout), sorted(expected))
  })
}

for (const block of blocks.filter(({ language }) => language === 'sh')) {
  test.serial(`commands: ${title(block)}`, async (t) => {
    t.timeout(DEADLINE)
    const folder = folderOf(block)
    mkdirSync(folder, { recursive: true })
    let printed = ''
    const commands = commandsOf(block.text)
    t.true(commands.length > 0, 'a block of commands has at least one')
    for (const command of commands) {
      const verdict = judge(command, root, folder)
      if (verdict.kind === 'wrong') t.fail(`${command}: ${verdict.why}`)
      if (verdict.kind !== 'run') continue
      const [program, args] =
        verdict.program === 'bash' ? ['bash', verdict.args] : [process.execPath, [launcher, ...verdict.args]]
      const { code, stdout, all } = await run(program, args, folder)
      t.is(code, 0, `${command}\n${all}`)
      printed += stdout
    }
    const expected = expectedOutput(block)
    if (expected !== null) t.is(sorted(printed), sorted(expected))
  })
}

test('links lead somewhere', (t) => {
  for (const document of documents) {
    for (const link of localLinks(text[document] as string)) {
      const [path = '', anchor] = link.split('#')
      const target = path === '' ? document : relative(root, join(root, dirname(document), path))
      t.true(existsSync(join(root, target)), `${document} → ${link}`)
      if (anchor === undefined) continue
      const anchors = anchorsOf(readFileSync(join(root, target), 'utf8'))
      t.true(anchors.has(anchor), `${document} → ${link}: no such heading`)
    }
  }
})

const unquote = (cell: string): string => cell.replaceAll('`', '')

test('docs/errors.md lists every code with its class, in order', (t) => {
  const rows = tableRows(text['docs/errors.md'] as string, 'Code', 'Class')
  const listed = rows.map(([code = '', name = '']) => [unquote(code), unquote(name)])
  const codes = Object.keys(errorKinds) as (keyof typeof errorKinds)[]
  t.deepEqual(
    listed,
    codes.map((code) => [code, makeError(code, '').name]),
  )
  for (const row of rows) t.true(row.length === 4 && row.every((cell) => cell !== ''), row.join(' | '))
})

test('the README names every export, and nothing else', (t) => {
  const rows = tableRows(text['README.md'] as string, 'Part', 'Exports')
  const named = (row: readonly string[]): string[] =>
    [...(row[1] ?? '').matchAll(/`([\w.]+)`/g)].map(([, name]) => name as string).filter((name) => !name.includes('.'))
  const isFunctional = ([part]: readonly string[]): boolean => part === '`syncbn/functional`'
  const ofRoot = rows.filter((row) => !isFunctional(row)).flatMap(named)
  t.deepEqual(ofRoot.sort(), Object.keys(syncbn).sort())
  t.deepEqual(rows.filter(isFunctional).flatMap(named).sort(), Object.keys(functional).sort())
})

test('the conformance table names tests that exist', (t) => {
  const contract = text['docs/numerics.md'] as string
  t.deepEqual(
    tableRows(contract, '#', 'What it says').map(([number]) => number),
    Array.from({ length: 12 }, (_, i) => String(i + 1)),
  )
  let checked = 0
  for (const [, file = '', names = ''] of contract.matchAll(/`([\w./-]+\.(?:ts|rs))` › ((?:`[^`]+`(?:, )?)+)/g)) {
    const source = readFileSync(join(root, file), 'utf8')
    for (const [, name = ''] of names.matchAll(/`([^`]+)`/g)) {
      t.true(source.includes(file.endsWith('.rs') ? `fn ${name}(` : name), `${file} has no test '${name}'`)
      checked += 1
    }
  }
  t.true(checked >= 12)
})
