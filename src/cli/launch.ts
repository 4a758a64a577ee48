/**
 * `syncbn launch`: one process per rank, as torchrun does it for one or several machines.
 *
 * Contract: each rank's output appears line by line with its rank before it. The first failure stops every other rank
 * (SIGTERM, after the grace period SIGKILL), becomes the exit code and is shown last. SIGINT, SIGTERM and SIGHUP stop
 * everything the same way; a second one does not wait. No process outlives the launcher, not even if it is killed.
 */
import { randomBytes } from 'node:crypto'
import { availableParallelism, constants } from 'node:os'

import { freePort } from './free-port.ts'
import { type LaunchOptions, UsageError } from './launch-options.ts'
import { scriptArguments } from './run-script.ts'
import { type Failure, type WorkerCommand, WorkerGroup } from './worker-group.ts'

const STOP_SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
const FOLLOW_LAUNCHER = new URL('./follow-launcher.js', import.meta.url).href

/**
 * Runs the job.
 *
 * @returns the exit code
 * @throws UsageError before any process is started
 */
export async function launch(options: LaunchOptions): Promise<number> {
  const script = scriptArguments(options.script)
  const token = jobToken(options)
  const stop = new StopRequests()
  try {
    for (let attempt = 0; ; attempt += 1) {
      const commands = await workerCommands(options, script, token, attempt)
      if (stop.signal !== null) return signalCode(stop.signal)
      const failure = await runAttempt(commands, options.gracePeriod, stop)
      if (stop.signal !== null) return signalCode(stop.signal)
      if (failure === null) return 0
      report(failure)
      if (attempt === options.maxRestarts) return failure.exitCode
      say(`starting all ranks again (restart ${attempt + 1} of ${options.maxRestarts})`)
    }
  } finally {
    stop.dispose()
  }
}

async function runAttempt(commands: WorkerCommand[], gracePeriod: number, stop: StopRequests): Promise<Failure | null> {
  const group = new WorkerGroup(commands, gracePeriod)
  stop.watch(group)
  try {
    return await group.wait()
  } finally {
    stop.watch(null)
  }
}

/** Turns signals into stopping the running group: once in good order, twice at once. */
class StopRequests {
  signal: NodeJS.Signals | null = null
  #group: WorkerGroup | null = null
  readonly #onSignal = (signal: NodeJS.Signals): void => {
    if (this.signal !== null) this.#group?.force()
    this.signal ??= signal
    void this.#group?.stop()
  }
  /** Whoever read our output is gone: nobody is left to tell, so the job ends as after SIGHUP. */
  readonly #onClosedOutput = (): void => this.#onSignal('SIGHUP')

  constructor() {
    for (const signal of STOP_SIGNALS) process.on(signal, this.#onSignal)
    for (const stream of [process.stdout, process.stderr]) stream.on('error', this.#onClosedOutput)
  }

  watch(group: WorkerGroup | null): void {
    this.#group = group
    if (this.signal !== null) void group?.stop()
  }

  dispose(): void {
    for (const signal of STOP_SIGNALS) process.off(signal, this.#onSignal)
  }
}

async function workerCommands(
  options: LaunchOptions,
  script: readonly string[],
  token: string,
  attempt: number,
): Promise<WorkerCommand[]> {
  const { nprocPerNode, nnodes, nodeRank } = options
  const shared = {
    WORLD_SIZE: String(nprocPerNode * nnodes),
    LOCAL_WORLD_SIZE: String(nprocPerNode),
    MASTER_ADDR: options.masterAddr,
    MASTER_PORT: String(options.masterPort ?? (await chooseMasterPort(options.masterAddr))),
    SYNCBN_TOKEN: token,
    SYNCBN_NUM_THREADS: process.env.SYNCBN_NUM_THREADS ?? String(threadsPerProcess(nprocPerNode)),
    SYNCBN_RESTART_COUNT: String(attempt),
  }
  return Array.from({ length: nprocPerNode }, (_, localRank) => {
    const rank = nodeRank * nprocPerNode + localRank
    const localRankArgument = options.passLocalRank ? [`--local-rank=${localRank}`] : []
    return {
      rank,
      args: ['--import', FOLLOW_LAUNCHER, ...script, ...localRankArgument, ...options.scriptArgs],
      env: { ...process.env, ...shared, RANK: String(rank), LOCAL_RANK: String(localRank) },
    }
  })
}

/** The cores divided among the processes, so that they do not take turns on them. */
function threadsPerProcess(processes: number): number {
  return Math.max(1, Math.floor(availableParallelism() / processes))
}

function jobToken({ nnodes }: LaunchOptions): string {
  const given = process.env.SYNCBN_TOKEN
  if (given !== undefined && given !== '') return given
  if (nnodes === 1) return randomBytes(32).toString('hex')
  throw new UsageError(
    'with --nnodes, set SYNCBN_TOKEN to the same secret on every node, for example: export SYNCBN_TOKEN=$(openssl rand -hex 32)',
  )
}

async function chooseMasterPort(host: string): Promise<number> {
  try {
    return await freePort(host)
  } catch (error) {
    throw new UsageError(`cannot listen on ${host}: ${(error as Error).message}`)
  }
}

function report(failure: Failure): void {
  const lines = failure.lastLines.map((line) => `  ${line}`)
  const heading = `rank ${failure.rank} failed first (${failure.reason})`
  say(lines.length === 0 ? `${heading}, without a word on standard error` : `${heading}; it said:\n${lines.join('\n')}`)
}

function say(text: string): void {
  process.stderr.write(`syncbn launch: ${text}\n`)
}

function signalCode(signal: NodeJS.Signals): number {
  return 128 + constants.signals[signal]
}
