/**
 * The processes of one attempt: started together, stopped together.
 *
 * Every rank leads a process group of its own, so that a signal reaches what the rank itself started, and so that
 * Ctrl-C in a terminal goes to the launcher alone, which then stops everybody in good order.
 */
import { spawn, type ChildProcess } from 'node:child_process'
import { setTimeout as delay } from 'node:timers/promises'
import type { Readable } from 'node:stream'
import { constants } from 'node:os'

import { copyLines, Tail } from './line-prefixer.ts'

/** How often stopped processes are looked for. */
const POLL_MS = 25
/** How long output is still read from a rank that has ended: what it started may hold the pipe open. */
const DRAIN_MS = 500
const TAIL_LINES = 40

/** What one process is started with. */
export interface WorkerCommand {
  rank: number
  /** Everything after `node`. */
  args: string[]
  env: NodeJS.ProcessEnv
}

/** The process that failed first. */
export interface Failure {
  rank: number
  /** Its exit code, or 128 + n if signal n ended it. */
  exitCode: number
  /** One phrase: `exit code 3`, `SIGKILL`. */
  reason: string
  /** The end of what it wrote to standard error. */
  lastLines: readonly string[]
}

interface Worker {
  rank: number
  child: ChildProcess
  errors: Tail
  exited: Promise<Exit>
  /** Settles when the process has ended and its output is copied. */
  ended: Promise<void>
}

interface Exit {
  code: number | null
  signal: NodeJS.Signals | null
}

/** The running processes of one attempt. */
export class WorkerGroup {
  readonly #workers: Worker[]
  readonly #gracePeriod: number
  #stopping: Promise<void> | null = null
  #forced = false

  /** Starts every process. `gracePeriod` is in milliseconds. */
  constructor(commands: readonly WorkerCommand[], gracePeriod: number) {
    this.#gracePeriod = gracePeriod
    this.#workers = commands.map(startWorker)
  }

  /** Waits for all processes; the first failure stops the others. Resolves to that failure, or null. */
  async wait(): Promise<Failure | null> {
    let first: { worker: Worker; exit: Exit } | null = null
    const watch = async (worker: Worker): Promise<void> => {
      const exit = await worker.exited
      if (exit.code !== 0 && this.#stopping === null) {
        first = { worker, exit }
        await this.stop()
      }
      await worker.ended
    }
    await Promise.all(this.#workers.map(watch))
    await this.#stopping
    // A rank that ended well may have left processes behind; the job is over, so they go too.
    this.#signal('SIGKILL')
    return first === null ? null : describeFailure(first)
  }

  /** SIGTERM to every process group, SIGKILL to what is left after the grace period. Resolves when none is left. */
  stop(): Promise<void> {
    this.#stopping ??= this.#stop()
    return this.#stopping
  }

  /** Ends the grace period of a running `stop` at once. */
  force(): void {
    this.#forced = true
    this.#signal('SIGKILL')
  }

  async #stop(): Promise<void> {
    const deadline = performance.now() + this.#gracePeriod
    this.#signal('SIGTERM')
    while (this.#alive() && !this.#forced && performance.now() < deadline) await delay(POLL_MS)
    this.#signal('SIGKILL')
    await Promise.all(this.#workers.map((worker) => worker.ended))
  }

  #signal(signal: NodeJS.Signals): void {
    for (const { child } of this.#workers) signalGroup(child.pid, signal)
  }

  #alive(): boolean {
    return this.#workers.some(({ child }) => signalGroup(child.pid, 0))
  }
}

function startWorker({ rank, args, env }: WorkerCommand): Worker {
  const child = spawn(process.execPath, args, {
    detached: true,
    // The fourth is a socket that nothing is ever written to: see follow-launcher.ts.
    stdio: ['ignore', 'pipe', 'pipe', 'pipe'],
    env: { ...env, SYNCBN_LAUNCHER_FD: '3' },
  })
  const errors = new Tail(TAIL_LINES)
  const exited = exitOf(child, errors)
  return { rank, child, errors, exited, ended: copyOutput(child, rank, errors, exited) }
}

function exitOf(child: ChildProcess, errors: Tail): Promise<Exit> {
  return new Promise((resolve) => {
    child.once('exit', (code, signal) => resolve({ code, signal }))
    child.once('error', (error) => {
      errors.push(error.message)
      resolve({ code: 1, signal: null })
    })
  })
}

async function copyOutput(child: ChildProcess, rank: number, errors: Tail, exited: Promise<Exit>): Promise<void> {
  const prefix = `[${rank}] `
  const [stdout, stderr] = [child.stdout as Readable, child.stderr as Readable]
  const copied = Promise.allSettled([
    copyLines(stdout, process.stdout, prefix, new Tail(0)),
    copyLines(stderr, process.stderr, prefix, errors),
  ])
  await exited
  await Promise.race([copied, delay(DRAIN_MS)])
  stdout.destroy()
  stderr.destroy()
}

function describeFailure({ worker, exit: { code, signal } }: { worker: Worker; exit: Exit }): Failure {
  return {
    rank: worker.rank,
    exitCode: code ?? 128 + (signal === null ? 0 : constants.signals[signal]),
    reason: signal ?? `exit code ${code}`,
    lastLines: worker.errors.lines,
  }
}

/** Signals a process group; false when it has no process left (or never had one). */
function signalGroup(leader: number | undefined, signal: NodeJS.Signals | 0): boolean {
  if (leader === undefined) return false
  try {
    process.kill(-leader, signal)
    return true
  } catch {
    return false
  }
}
