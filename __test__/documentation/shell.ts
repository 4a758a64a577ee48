/**
 * The commands in the documentation's `sh` blocks. Short ones are run; long ones and those that need other machines or
 * programs are checked: that what they name exists, and that their options are known.
 */
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

import { parseLaunchOptions } from '../../dist/cli/launch-options.js'

/** What to do with a command. */
export type Verdict =
  { kind: 'run'; program: 'syncbn' | 'bash'; args: string[] } | { kind: 'checked' } | { kind: 'wrong'; why: string }

const checked: Verdict = { kind: 'checked' }
const wrong = (why: string): Verdict => ({ kind: 'wrong', why })
const expectThat = (condition: boolean, why: string): Verdict => (condition ? checked : wrong(why))

/** Options that the documentation may give to scripts, by script. */
const SCRIPT_OPTIONS: Readonly<Record<string, readonly string[]>> = {
  bench: ['--quick', '--peers', '--json', '--device', 'cuda'],
  build: ['--debug'],
  'test:gpu': ['--fakes'],
}
const CARGO_COMMANDS = ['test', 'fmt', 'clippy', 'doc']

/** Commands of a block, one per `&&` part, without comments; `\` at a line's end joins lines. */
export function commandsOf(text: string): string[] {
  return text
    .replaceAll(/\\\n\s*/g, ' ')
    .split('\n')
    .flatMap((line) => line.replace(/(^|\s)#.*$/, '').split('&&'))
    .map((command) => command.trim())
    .filter(Boolean)
}

/** Judges a command; `folder` is where the document's own scripts lie. */
export function judge(command: string, root: string, folder: string): Verdict {
  if (/^export \w+=\$\(.*\)$/.test(command)) return { kind: 'run', program: 'bash', args: ['-ec', command] }
  const [program, ...args] = command.split(/\s+/) as [string, ...string[]]
  switch (program) {
    case 'npm':
      return npm(args, root)
    case 'npx':
      return npx(args, root, folder)
    case 'cargo':
      return cargo(args, root)
    case 'node':
      return node(args, root)
    case 'python':
    case 'venv/bin/python':
    case 'venv/bin/pip':
      return python(args, root)
    default:
      return wrong(`no rule for '${program}'`)
  }
}

function npm([command = '', ...rest]: string[], root: string): Verdict {
  if (command === 'ci') return expectThat(existsSync(join(root, 'package-lock.json')), 'there is no package-lock.json')
  const [name, ...args] = command === 'run' ? (rest as [string, ...string[]]) : [command, ...rest]
  if (command !== 'run' && command !== 'test') return wrong(`no rule for 'npm ${command}'`)
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { scripts: object }
  if (!(name in scripts)) return wrong(`package.json has no script '${name}'`)
  const options = args.filter((arg) => arg !== '--')
  if (name === 'test') {
    return expectThat(
      options.every((file) => existsSync(join(root, file))),
      `no such test: ${options.join(' ')}`,
    )
  }
  const unknown = options.find((option) => !SCRIPT_OPTIONS[name]?.includes(option))
  return expectThat(unknown === undefined, `script '${name}' has no option '${unknown}'`)
}

function npx([program, command, ...args]: string[], root: string, folder: string): Verdict {
  if (program === 'prettier') return expectThat(command === '--write' && args.length > 0, 'prettier --write FILE')
  if (program !== 'syncbn') return wrong(`no rule for 'npx ${program}'`)
  const words = [command, ...args] as string[]
  if (command !== 'launch') return { kind: 'run', program: 'syncbn', args: words }
  const options = parseLaunchOptions(args)
  if (options === 'help') return { kind: 'run', program: 'syncbn', args: words }
  if (options.nnodes > 1) return checked
  const path = [folder, root].map((place) => join(place, options.script)).find((path) => existsSync(path))
  if (path === undefined) return wrong(`there is no script ${options.script}`)
  return { kind: 'run', program: 'syncbn', args: words.map((word) => (word === options.script ? path : word)) }
}

function cargo([command = '', ...args]: string[], root: string): Verdict {
  if (command === 'xtask' || !CARGO_COMMANDS.includes(command)) return wrong(`no rule for 'cargo ${command}'`)
  const at = args.indexOf('-p')
  const folder = (args[at + 1] ?? '').replace(/^syncbn-/, 'crates/')
  return expectThat(at === -1 || existsSync(join(root, folder)), `there is no crate ${args[at + 1]}`)
}

/** A script of the repository, whose usage names what it is given. */
function node([script = '', ...words]: string[], root: string): Verdict {
  const path = join(root, script)
  if (!existsSync(path)) return wrong(`there is no ${script}`)
  const usage = readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => line.includes(`node ${script}`))
  const unknown = words.find((word) => !usage.some((line) => line.split(/\s+/).includes(word)))
  return expectThat(unknown === undefined, `${script} does not say that it takes '${unknown}'`)
}

function python(args: string[], root: string): Verdict {
  const files = args.filter((arg) => /\.(py|txt)$/.test(arg))
  const missing = files.find((file) => !existsSync(join(root, file)))
  return expectThat(missing === undefined, `there is no ${missing}`)
}
