/**
 * The command line of `syncbn launch`: what may be written, and what it means.
 *
 * Every option has torchrun's name in both its spellings (`--nproc-per-node`, `--nproc_per_node`), as `--name value`
 * or `--name=value`. The first word that is not an option is the script; everything after it belongs to the script.
 */
import { availableParallelism } from 'node:os'

/** A mistake on the command line; the program prints the message and exits with code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError'
}

/** What `syncbn launch` was asked to do. */
export interface LaunchOptions {
  /** Processes started on this machine. */
  nprocPerNode: number
  /** Machines of the job. */
  nnodes: number
  /** Which of them this is, from 0. */
  nodeRank: number
  /** Where rank 0 listens. */
  masterAddr: string
  /** The port it listens on; null: any free one. */
  masterPort: number | null
  /** How often the local processes are started again after a failure. */
  maxRestarts: number
  /** Hand `--local-rank=N` to the script, for scripts that do not read LOCAL_RANK. */
  passLocalRank: boolean
  /** Milliseconds between SIGTERM and SIGKILL. */
  gracePeriod: number
  script: string
  scriptArgs: string[]
}

export const LAUNCH_USAGE = `Usage: syncbn launch [options] <script> [script arguments]

Starts one process per rank and waits for all of them.

Options
  --nproc-per-node N   processes on this machine, or 'auto' for one per CPU core (default 1)
  --nnodes N           machines of the job (default 1)
  --node-rank N        which of them this is, from 0 (default 0; needed with --nnodes)
  --master-addr HOST   where rank 0 listens (default 127.0.0.1; needed with --nnodes)
  --master-port PORT   the port it listens on (default: a free one; 29500 with --nnodes)
  --max-restarts N     start all local processes again after a failure, up to N times (default 0)
  --pass-local-rank    hand --local-rank=N to the script as its first argument
  --grace-period SEC   seconds between SIGTERM and SIGKILL when processes are stopped (default 10)
  -h, --help           this text

Each process finds RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT, SYNCBN_TOKEN,
SYNCBN_NUM_THREADS and SYNCBN_RESTART_COUNT in its environment. The exit code is 0 when every process ended with 0,
else that of the process that failed first (128 + n if signal n ended it), and 2 for a mistake on this command line.`

const DEFAULT_NNODES_PORT = 29500
const VALUE_OPTIONS = [
  'nproc-per-node',
  'nnodes',
  'node-rank',
  'master-addr',
  'master-port',
  'max-restarts',
  'grace-period',
] as const
const FLAG_OPTIONS = ['pass-local-rank', 'help'] as const
type ValueOption = (typeof VALUE_OPTIONS)[number]
type FlagOption = (typeof FLAG_OPTIONS)[number]

interface Parsed {
  values: Map<ValueOption, string>
  flags: Set<FlagOption>
  rest: string[]
}

/**
 * Reads the words after `syncbn launch`.
 *
 * @returns the options, or 'help' when that was asked for
 * @throws UsageError that says which word is wrong and what was expected
 */
export function parseLaunchOptions(args: readonly string[]): LaunchOptions | 'help' {
  const parsed = split(args)
  if (parsed.flags.has('help')) return 'help'
  const [script, ...scriptArgs] = parsed.rest
  if (script === undefined) throw new UsageError('no script to run was given')
  const nnodes = wholeNumber(parsed, 'nnodes', 1, 1)
  return {
    nprocPerNode: processCount(parsed),
    nnodes,
    nodeRank: nodeRank(parsed, nnodes),
    masterAddr: masterAddr(parsed, nnodes),
    masterPort: masterPort(parsed, nnodes),
    maxRestarts: wholeNumber(parsed, 'max-restarts', 0, 0),
    passLocalRank: parsed.flags.has('pass-local-rank'),
    gracePeriod: seconds(parsed, 'grace-period', 10) * 1000,
    script,
    scriptArgs,
  }
}

function split(args: readonly string[]): Parsed {
  const parsed: Parsed = { values: new Map(), flags: new Set(), rest: [] }
  let at = 0
  while (at < args.length) {
    const word = args[at] as string
    if (word === '--') return { ...parsed, rest: args.slice(at + 1) }
    if (!word.startsWith('-')) return { ...parsed, rest: args.slice(at) }
    at += 1 + readOption(parsed, word, args[at + 1])
  }
  return parsed
}

/** Stores one option; returns how many further words it took. */
function readOption(parsed: Parsed, word: string, next: string | undefined): 0 | 1 {
  const [spelling, ...inline] = word.split('=')
  const name = spelling === '-h' ? 'help' : (spelling as string).replace(/^--/, '').replaceAll('_', '-')
  if (isOneOf(FLAG_OPTIONS, name)) {
    if (inline.length > 0) throw new UsageError(`${spelling} takes no value`)
    parsed.flags.add(name)
    return 0
  }
  if (!(spelling as string).startsWith('--') || !isOneOf(VALUE_OPTIONS, name)) {
    throw new UsageError(`unknown option ${spelling}; options of the script go after the script`)
  }
  const value = inline.length > 0 ? inline.join('=') : next
  if (value === undefined || value === '') throw new UsageError(`${spelling} needs a value`)
  parsed.values.set(name, value)
  return inline.length > 0 ? 0 : 1
}

function isOneOf<T extends string>(names: readonly T[], name: string): name is T {
  return (names as readonly string[]).includes(name)
}

function wholeNumber(parsed: Parsed, name: ValueOption, fallback: number, least: number): number {
  const text = parsed.values.get(name)
  if (text === undefined) return fallback
  const value = /^\d+$/.test(text) ? Number(text) : NaN
  if (!(Number.isSafeInteger(value) && value >= least)) {
    throw new UsageError(`--${name} needs a whole number of at least ${least}, got '${text}'`)
  }
  return value
}

function seconds(parsed: Parsed, name: ValueOption, fallback: number): number {
  const text = parsed.values.get(name)
  if (text === undefined) return fallback
  const value = /^\d+(\.\d+)?$/.test(text) ? Number(text) : NaN
  if (!Number.isFinite(value)) throw new UsageError(`--${name} needs seconds, got '${text}'`)
  return value
}

function processCount(parsed: Parsed): number {
  const text = parsed.values.get('nproc-per-node')
  if (text === 'auto' || text === 'cpu') return availableParallelism()
  return wholeNumber(parsed, 'nproc-per-node', 1, 1)
}

function nodeRank(parsed: Parsed, nnodes: number): number {
  if (nnodes > 1 && !parsed.values.has('node-rank')) {
    throw new UsageError(`--nnodes ${nnodes} needs --node-rank, from 0 to ${nnodes - 1}`)
  }
  const value = wholeNumber(parsed, 'node-rank', 0, 0)
  if (value >= nnodes) throw new UsageError(`--node-rank must be below --nnodes ${nnodes}, got ${value}`)
  return value
}

function masterAddr(parsed: Parsed, nnodes: number): string {
  const value = parsed.values.get('master-addr')
  if (value === undefined && nnodes > 1) {
    throw new UsageError(`--nnodes ${nnodes} needs --master-addr, an address of node 0 that the other nodes reach`)
  }
  return value ?? '127.0.0.1'
}

function masterPort(parsed: Parsed, nnodes: number): number | null {
  if (!parsed.values.has('master-port')) return nnodes > 1 ? DEFAULT_NNODES_PORT : null
  const value = wholeNumber(parsed, 'master-port', 0, 1)
  if (value > 65535) throw new UsageError(`--master-port must be between 1 and 65535, got ${value}`)
  return value
}
