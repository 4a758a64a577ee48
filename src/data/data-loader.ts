/** Batches of a dataset, one after another. */
import { setImmediate as nextTurn } from 'node:timers/promises'

import { argumentError } from '../errors.ts'
import { native } from '../native.ts'
import { runScope } from '../scope.ts'
import { stateOf, Tensor } from '../tensor.ts'
import { defaultCollate, isPlainObject } from './collate.ts'
import type { Sampler } from './distributed-sampler.ts'

/** Samples by number, from 0. */
export interface Dataset<S> {
  readonly length: number
  /**
   * One sample. Tensors made in here are released once the batch is made; `keep()` those that are to stay, such as in
   * a cache. With a get that returns promises they are left to the garbage collector instead; the first call that
   * does so is made twice.
   */
  get(index: number): S | Promise<S>
}

/** Options of `DataLoader`. */
export interface DataLoaderOptions<S, B> {
  /** Samples per batch; default 1. */
  batchSize?: number
  /** Default false. True: another order each time, drawn from this thread's generator (see `manualSeed`). */
  shuffle?: boolean
  /** Which samples, in which order; instead of `shuffle`. Default: all in order. */
  sampler?: Sampler
  /** Default false. True: leaves out a last batch of fewer samples. */
  dropLast?: boolean
  /** Default 0: samples are made in this thread. Others are not in this release. */
  numWorkers?: number
  /** Needs `numWorkers`. */
  prefetchFactor?: number
  /**
   * Accepted for programs written for PyTorch, and without effect: batches are in ordinary memory, which `to('cuda:N')`
   * has read when it returns.
   */
  pinMemory?: boolean
  /**
   * Makes a batch of samples; default: stacks tensors, arrays and numbers, field by field (see `defaultCollate`).
   * Tensors it makes belong to the batch when they are in arrays, maps, sets or plain objects.
   */
  collate?: (samples: S[]) => B
  /** Ends the iteration: it then throws the signal's reason. */
  signal?: AbortSignal
}

/**
 * Iterate with `for await`. When the next batch is asked for, and at the end, the tensors of the previous batch are
 * disposed: those that `collate` made, unless they are kept (`keep`); a tensor of the dataset that `collate` merely
 * passed on is left alone. Between batches the event loop gets a turn.
 */
export class DataLoader<S, B = S> implements AsyncIterable<B> {
  readonly #dataset: Dataset<S>
  readonly #batchSize: number
  readonly #shuffle: boolean
  readonly #sampler: Sampler | null
  readonly #dropLast: boolean
  readonly #collate: (samples: S[]) => B
  readonly #signal: AbortSignal | null
  /** Whether get has returned a promise before: then no scope can tell what it makes. */
  #asynchronous = false

  /** @throws ArgumentError for options out of range, contradicting ones, and what is not in this release */
  constructor(dataset: Dataset<S> | URL, options: DataLoaderOptions<S, B> = {}) {
    const { batchSize = 1, shuffle = false, sampler, dropLast = false, collate, signal } = options
    this.#dataset = checkDataset(dataset, options.numWorkers ?? 0, options.prefetchFactor)
    if (!(Number.isSafeInteger(batchSize) && batchSize >= 1)) {
      throw argumentError(`batchSize must be a whole number of at least 1, got ${String(batchSize)}`)
    }
    if (sampler !== undefined && shuffle)
      throw argumentError('give either shuffle or a sampler, which decides the order')
    this.#batchSize = batchSize
    this.#shuffle = shuffle
    this.#sampler = sampler ?? null
    this.#dropLast = dropLast
    this.#collate = collate ?? (defaultCollate as (samples: S[]) => B)
    this.#signal = signal ?? null
  }

  /** Batches of one iteration. */
  get length(): number {
    const batches = (this.#sampler ?? this.#dataset).length / this.#batchSize
    return this.#dropLast ? Math.floor(batches) : Math.ceil(batches)
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<B, void, undefined> {
    let previous: Tensor[] = []
    try {
      for (const indices of this.#batches()) {
        await nextTurn()
        this.#signal?.throwIfAborted()
        previous.forEach(release)
        previous = []
        const { batch, made } = this.#asynchronous ? await this.#loadAsync(indices) : await this.#load(indices)
        previous = made
        yield batch
      }
    } finally {
      previous.forEach(release)
    }
  }

  *#batches(): Iterable<number[]> {
    let batch: number[] = []
    for (const index of this.#order()) {
      batch.push(index)
      if (batch.length < this.#batchSize) continue
      yield batch
      batch = []
    }
    if (batch.length > 0 && !this.#dropLast) yield batch
  }

  #order(): Iterable<number> {
    if (this.#sampler !== null) return this.#sampler
    const { length } = this.#dataset
    return this.#shuffle ? native.randperm(length) : Array.from({ length }, (_, i) => i)
  }

  /** The samples in one scope, which releases what they were made with. */
  async #load(indices: readonly number[]): Promise<Loaded<B>> {
    const loaded = runScope((): Loaded<B> | null => {
      const samples: S[] = []
      for (const index of indices) {
        const sample = this.#dataset.get(index)
        if (isPromiseLike(sample)) {
          // Ours to await nowhere: the second call's promise is the one that counts.
          sample.then(undefined, () => {})
          return null
        }
        samples.push(sample)
      }
      return this.#join(samples)
    })
    if (loaded !== null) return loaded
    this.#asynchronous = true
    return this.#loadAsync(indices)
  }

  async #loadAsync(indices: readonly number[]): Promise<Loaded<B>> {
    const samples = await Promise.all(indices.map((index) => this.#dataset.get(index)))
    this.#signal?.throwIfAborted()
    return runScope(() => this.#join(samples))
  }

  #join(samples: S[]): Loaded<B> {
    const batch = this.#collate(samples)
    const passedOn = new Set(tensorsIn(samples))
    return { batch, made: tensorsIn(batch).filter((tensor) => !passedOn.has(tensor)) }
  }
}

interface Loaded<B> {
  batch: B
  /** The tensors in it that `collate` made. */
  made: Tensor[]
}

function release(tensor: Tensor): void {
  if (!tensor.disposed && !stateOf(tensor).exempt) tensor.dispose()
}

function isPromiseLike<S>(value: S | PromiseLike<S>): value is PromiseLike<S> {
  return typeof (value as { then?: unknown } | null | undefined)?.then === 'function'
}

/** The tensors in a value: itself, or inside arrays, maps, sets and plain objects. */
function tensorsIn(value: unknown): Tensor[] {
  if (value instanceof Tensor) return [value]
  if (Array.isArray(value) || value instanceof Set) return [...(value as Iterable<unknown>)].flatMap(tensorsIn)
  if (value instanceof Map) return [...value.values()].flatMap(tensorsIn)
  return isPlainObject(value) ? Object.values(value).flatMap(tensorsIn) : []
}

function checkDataset<S>(
  dataset: Dataset<S> | URL,
  numWorkers: number,
  prefetchFactor: number | undefined,
): Dataset<S> {
  if (numWorkers !== 0) {
    throw argumentError(`numWorkers must be 0: worker threads are not in this release, got ${String(numWorkers)}`)
  }
  if (prefetchFactor !== undefined) throw argumentError('prefetchFactor needs numWorkers, which is not in this release')
  if (dataset instanceof URL) {
    throw argumentError(
      'a dataset given by URL needs numWorkers, which is not in this release: give the dataset itself',
    )
  }
  if (typeof dataset?.get !== 'function' || !Number.isSafeInteger(dataset.length)) {
    throw argumentError('a dataset has a length and a get(index) method')
  }
  return dataset
}
