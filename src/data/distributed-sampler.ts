/** Which samples of a dataset a rank sees in an epoch: PyTorch's DistributedSampler, index for index. */
import { getRank, getWorldSize } from '../distributed/process-group.ts'
import { argumentError } from '../errors.ts'
import { native } from '../native.ts'

/** Indices of a dataset in the order in which they are to be used. */
export interface Sampler extends Iterable<number> {
  /** How many indices one iteration gives. */
  readonly length: number
}

/** Options of `DistributedSampler`. */
export interface DistributedSamplerOptions {
  /** Ranks that share the dataset; default: the world size. */
  numReplicas?: number
  /** This one's number among them; default: the rank. */
  rank?: number
  /** Default true: another order in every epoch. */
  shuffle?: boolean
  /** The same on every rank; default 0. */
  seed?: number
  /** Default false: indices repeat from the start until every rank has equally many; true: the rest is left out. */
  dropLast?: boolean
}

/**
 * Deals a dataset out to the ranks: rank r takes every numReplicas-th index, starting at r, of a permutation that
 * depends on `seed + epoch` alone. Every rank gets equally many. Call `setEpoch` before each epoch, or every epoch
 * has the first one's order.
 */
export class DistributedSampler implements Sampler {
  readonly #datasetLength: number
  readonly #numReplicas: number
  readonly #rank: number
  readonly #shuffle: boolean
  readonly #seed: number
  readonly #dropLast: boolean
  #epoch = 0

  /**
   * @throws ArgumentError when a number is out of range; DistributedError ERR_NOT_INITIALIZED when `numReplicas` or
   *   `rank` is left out and there is no process group
   */
  constructor(dataset: { readonly length: number }, options: DistributedSamplerOptions = {}) {
    const { numReplicas = getWorldSize(), rank = getRank(), shuffle = true, seed = 0, dropLast = false } = options
    if (!isCount(dataset.length))
      throw argumentError(`the dataset's length must be a whole number, got ${String(dataset.length)}`)
    if (!(isCount(numReplicas) && numReplicas >= 1)) {
      throw argumentError(`numReplicas must be a whole number of at least 1, got ${String(numReplicas)}`)
    }
    if (!(isCount(rank) && rank < numReplicas)) {
      throw argumentError(`invalid rank ${String(rank)}: it must be in the interval [0, ${numReplicas - 1}]`)
    }
    if (!isCount(seed)) throw argumentError(`seed must be a whole number, got ${String(seed)}`)
    this.#datasetLength = dataset.length
    this.#numReplicas = numReplicas
    this.#rank = rank
    this.#shuffle = shuffle
    this.#seed = seed
    this.#dropLast = dropLast
  }

  /** How many indices this rank gets in an epoch: the same on every rank. */
  get length(): number {
    const share = this.#datasetLength / this.#numReplicas
    return this.#dropLast ? Math.floor(share) : Math.ceil(share)
  }

  /** Chooses the permutation of the next iteration. */
  setEpoch(epoch: number): void {
    if (!isCount(epoch)) throw argumentError(`epoch must be a whole number, got ${String(epoch)}`)
    this.#epoch = epoch
  }

  [Symbol.iterator](): Iterator<number> {
    const indices = native.distributedIndices(
      this.#datasetLength,
      this.#numReplicas,
      this.#rank,
      this.#shuffle,
      this.#seed,
      this.#epoch,
      this.#dropLast,
    )
    return indices[Symbol.iterator]()
  }
}

function isCount(value: unknown): value is number {
  return Number.isSafeInteger(value) && (value as number) >= 0
}
