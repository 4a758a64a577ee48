#!/usr/bin/env node
/**
 * The `syncbn` program: `syncbn launch` starts the processes of a job, `syncbn doctor` reports on this machine.
 *
 * Exit codes: 0, or 2 for a mistake on the command line, or what the command gives (see each).
 */
import { readFileSync } from 'node:fs'

import { doctor } from './doctor.ts'
import { LAUNCH_USAGE, parseLaunchOptions, UsageError } from './launch-options.ts'
import { launch } from './launch.ts'

const USAGE = `Usage: syncbn <command>

Commands
  launch    start one process per rank: syncbn launch --nproc-per-node 2 train.js
  doctor    report what this machine offers and what would be used

Options
  -h, --help       this text; 'syncbn launch --help' for the launcher's options
  -V, --version    the version of the package`

async function main(args: readonly string[]): Promise<number> {
  const [command, ...rest] = args
  switch (command) {
    case 'launch':
      return runLaunch(rest)
    case 'doctor':
      if (rest.length > 0) throw new UsageError(`doctor takes no arguments, got '${rest.join(' ')}'`)
      return doctor()
    case '-V':
    case '--version':
      return print(packageVersion())
    case '-h':
    case '--help':
      return print(USAGE)
    case undefined:
      throw new UsageError('no command was given')
    default:
      throw new UsageError(`unknown command '${command}'`)
  }
}

async function runLaunch(args: readonly string[]): Promise<number> {
  const options = parseLaunchOptions(args)
  return options === 'help' ? print(LAUNCH_USAGE) : launch(options)
}

function print(text: string): 0 {
  process.stdout.write(`${text}\n`)
  return 0
}

function packageVersion(): string {
  const file = new URL('../../package.json', import.meta.url)
  return (JSON.parse(readFileSync(file, 'utf8')) as { version: string }).version
}

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  if (!(error instanceof UsageError)) throw error
  const help = process.argv[2] === 'launch' ? 'syncbn launch --help' : 'syncbn --help'
  process.stderr.write(`syncbn: ${error.message}\nTry '${help}'.\n`)
  process.exitCode = 2
}
