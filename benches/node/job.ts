/** The processes of one job of the benchmark. */
import { spawn, type ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { availableParallelism } from 'node:os'
import { fileURLToPath } from 'node:url'

import { freePort } from '../../dist/cli/free-port.js'

import type { Answer, Request } from './rank.ts'

const RANK = fileURLToPath(new URL('./rank.ts', import.meta.url))

/** Ranks that wait for requests. */
export class Job {
  readonly #ranks: readonly ChildProcess[]

  private constructor(ranks: readonly ChildProcess[]) {
    this.#ranks = ranks
  }

  /** Starts `size` processes with an equal part of the cores each. */
  static async start(size: number): Promise<Job> {
    const environment = {
      ...process.env,
      WORLD_SIZE: String(size),
      MASTER_ADDR: '127.0.0.1',
      MASTER_PORT: String(await freePort()),
      SYNCBN_TOKEN: randomBytes(32).toString('hex'),
      SYNCBN_NUM_THREADS: String(threadsPerRank(size)),
    }
    const ranks = Array.from({ length: size }, (_, rank) =>
      spawn(process.execPath, [...process.execArgv, RANK], {
        stdio: ['ignore', 'inherit', 'inherit', 'ipc'],
        env: { ...environment, RANK: String(rank), LOCAL_RANK: String(rank) },
      }),
    )
    await Promise.all(ranks.map(nextMessage))
    return new Job(ranks)
  }

  get size(): number {
    return this.#ranks.length
  }

  /** Sends every rank the request; the times are those of the slowest rank in each iteration. */
  async ask(request: Request): Promise<Answer> {
    return slowest(await this.#askAll(request))
  }

  /** Sends every rank the request; the times are rank 0's. */
  async askFirst(request: Request): Promise<Answer> {
    return (await this.#askAll(request))[0] as Answer
  }

  #askAll(request: Request): Promise<Answer[]> {
    const answers = this.#ranks.map((rank) => nextMessage<Answer>(rank))
    for (const rank of this.#ranks) rank.send(request)
    return Promise.all(answers)
  }

  async end(): Promise<void> {
    const ended = this.#ranks.map((rank) => once(rank, 'exit'))
    for (const rank of this.#ranks) rank.send({ kind: 'end' } satisfies Request)
    await Promise.all(ended)
  }
}

/** Compute threads of each of `size` ranks. */
export function threadsPerRank(size: number): number {
  return Math.max(1, Math.floor(availableParallelism() / size))
}

function slowest(answers: readonly Answer[]): Answer {
  const join = (part: 'first' | 'second'): number[] =>
    (answers[0] as Answer)[part].map((_, i) => Math.max(...answers.map((answer) => answer[part][i] as number)))
  return { first: join('first'), second: join('second') }
}

/** The next message of a rank; a rank that ends instead ends the benchmark. */
function nextMessage<T>(rank: ChildProcess): Promise<T> {
  return new Promise((resolve, reject) => {
    const onExit = (code: number | null, signal: string | null): void =>
      reject(new Error(`a rank ended with ${signal ?? `exit code ${code}`}`))
    rank.once('exit', onExit)
    rank.once('message', (message) => {
      rank.off('exit', onExit)
      resolve(message as T)
    })
  })
}
