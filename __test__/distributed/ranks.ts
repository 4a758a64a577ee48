/**
 * Runs a scenario on several ranks, one process each, and collects what they say.
 *
 * Every run has a deadline. Unless failures are expected, the first rank that fails ends the others and the run throws
 * with everything they wrote. No process is left afterwards, and that is checked.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { fileURLToPath } from 'node:url'

import { freePort } from '../../dist/cli/free-port.js'

export { freePort }

/** Exit codes of worker.ts. */
export const EXIT = { ok: 0, scenarioFailed: 10, notStarted: 11 } as const

/** An error as a scenario saw it. */
export interface SeenError {
  name: string
  code: string
  message: string
  /** Milliseconds from the call to the error. */
  after: number
}

/** What became of one rank. */
export interface Outcome<T> {
  rank: number
  exitCode: number | null
  signal: NodeJS.Signals | null
  /** What the scenario returned. */
  value: T | undefined
  output: string
}

export interface RunOptions {
  /** Handed to the scenario. */
  args?: unknown
  /** Environment of a rank, over the usual one; undefined removes a variable. */
  env?: (rank: number) => Record<string, string | undefined>
  /** Milliseconds for the whole run; default 60 000. */
  deadline?: number
  /** Default false. True: ranks may end badly, and the others go on. */
  failuresExpected?: boolean
  /** Default: a free one. */
  port?: number
  /** Called when a rank's scenario reports a stage. */
  onStage?: (rank: number, stage: string) => void
}

type Message = { kind: 'stage'; stage: string } | { kind: 'value'; value: unknown }

interface Running {
  child: ChildProcess
  outcome: Outcome<unknown>
  ended: Promise<void>
}

const workerPath = fileURLToPath(new URL('./worker.ts', import.meta.url))

/** `file` is in the folder scenarios beside this file, `folder/file` in that of another folder of tests. */
function scenarioUrl(file: string): string {
  const [name, folder = 'distributed'] = file.split('/').reverse() as [string, string?]
  return new URL(`../${folder}/scenarios/${name}.ts`, import.meta.url).href
}

/**
 * Runs function `name` of scenarios/`file`.ts on `size` ranks.
 *
 * @param scenario `file.name`, or `folder/file.name` for a scenario of another folder of tests
 * @returns one outcome per rank
 */
export async function runRanks<T>(scenario: string, size: number, options: RunOptions = {}): Promise<Outcome<T>[]> {
  const shared = {
    WORLD_SIZE: String(size),
    LOCAL_WORLD_SIZE: String(size),
    MASTER_ADDR: '127.0.0.1',
    MASTER_PORT: String(options.port ?? (await freePort())),
    SYNCBN_TOKEN: randomBytes(16).toString('hex'),
    SYNCBN_NUM_THREADS: '1',
  }
  const ranks = Array.from({ length: size }, (_, rank) => start(scenario, rank, shared, options))
  const killAll = (): void => ranks.forEach(({ child }) => killGroup(child))
  const deadline = options.deadline ?? 60_000
  let late = false
  const timer = setTimeout(() => {
    late = true
    killAll()
  }, deadline)
  try {
    await Promise.all(
      ranks.map((rank) => rank.ended.then(() => failed(rank) && !options.failuresExpected && killAll())),
    )
  } finally {
    clearTimeout(timer)
    killAll()
  }
  if (late) throw new Error(`${scenario} took more than ${deadline} ms\n${outputs(ranks)}`)
  if (!options.failuresExpected && ranks.some(failed)) throw new Error(`${scenario} failed\n${outputs(ranks)}`)
  await requireNoOrphans(ranks)
  return ranks.map(({ outcome }) => outcome as Outcome<T>)
}

/** `runRanks`, and only what the scenarios returned. */
export async function valuesOf<T>(scenario: string, size: number, options: RunOptions = {}): Promise<T[]> {
  const outcomes = await runRanks<T>(scenario, size, options)
  return outcomes.map(({ value }) => value as T)
}

function start(scenario: string, rank: number, shared: Record<string, string>, options: RunOptions): Running {
  const [file, name] = scenario.split('.') as [string, string]
  const own = { ...shared, RANK: String(rank), LOCAL_RANK: String(rank), ...options.env?.(rank) }
  const child = spawn(
    process.execPath,
    ['--import', '@oxc-node/core/register', workerPath, scenarioUrl(file), name, JSON.stringify(options.args ?? null)],
    { detached: true, stdio: ['ignore', 'pipe', 'pipe', 'ipc'], serialization: 'advanced', env: environment(own) },
  )
  const outcome: Outcome<unknown> = { rank, exitCode: null, signal: null, value: undefined, output: '' }
  for (const stream of [child.stdout, child.stderr]) {
    stream?.setEncoding('utf8').on('data', (text: string) => (outcome.output += text))
  }
  child.on('message', (message: Message) => {
    if (message.kind === 'value') outcome.value = message.value
    else options.onStage?.(rank, message.stage)
  })
  const ended = new Promise<void>((resolve) => {
    child.once('close', (code, signal) => {
      outcome.exitCode = code
      outcome.signal = signal
      resolve()
    })
  })
  return { child, outcome, ended }
}

function environment(own: Record<string, string | undefined>): NodeJS.ProcessEnv {
  const merged: NodeJS.ProcessEnv = { ...process.env, ...own }
  for (const [name, value] of Object.entries(merged)) if (value === undefined) delete merged[name]
  return merged
}

function failed({ outcome }: Running): boolean {
  return outcome.exitCode !== EXIT.ok
}

function outputs(ranks: readonly Running[]): string {
  return ranks
    .map(
      ({ outcome }) =>
        `── rank ${outcome.rank}: ${outcome.signal ?? `exit code ${outcome.exitCode}`}\n${outcome.output}`,
    )
    .join('\n')
}

function killGroup(child: ChildProcess): void {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
  } catch {
    // The group has ended.
  }
}

async function requireNoOrphans(ranks: readonly Running[]): Promise<void> {
  for (let attempt = 0; ; attempt += 1) {
    const left = ranks.filter(({ child }) => isAlive(-(child.pid ?? 0)))
    if (left.length === 0) return
    if (attempt === 40) throw new Error(`processes are left of ranks ${left.map(({ outcome }) => outcome.rank)}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/** Whether a process, or for a negative number a process group, exists. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}
