/**
 * Averages gradients over the ranks of a group while a backward pass runs.
 *
 * The native reducer holds the buckets; this class connects it to the tape. A forward that is to be synchronized calls
 * `expectBackward`. The first gradient of the next backward pass starts a round; every further one is copied into its
 * bucket as soon as it is finished, and full buckets are all-reduced meanwhile; the end of the pass waits for them and
 * writes the averages into the gradients. An error on the way forgets the round.
 */
import { gradientOf, onBackwardError, queueBackwardCallback, registerGradReadyHook } from '../autograd.ts'
import { type BindingGroup, type BindingReducer, native } from '../native.ts'
import { nativeOf, type Tensor, wrap } from '../tensor.ts'

/** PyTorch's size of the first bucket: small, so that the first exchange starts early. */
const FIRST_BUCKET_BYTES = 1024 * 1024

/** One backward pass. */
interface Round {
  /** By parameter: whether any rank's graph reaches it, so that every rank gets a gradient. */
  reduced: readonly boolean[]
}

export class GradientReducer {
  readonly #native: BindingReducer
  readonly #group: BindingGroup
  readonly #parameters: readonly Tensor[]
  readonly #findUnused: boolean
  /** Parameters whose gradient holds something that was accumulated without an exchange. */
  readonly #unsynchronized = new Set<Tensor>()
  /** What the graphs of the forward calls since the last round reach; null: no forward asks for a round. */
  #expected: Set<Tensor> | null = null
  #round: Round | null = null
  /** Off inside `noSync`. */
  enabled = true

  /**
   * @param parameters with their names; all require a gradient
   * @param findUnused whether parameters may be missing from the graph
   */
  constructor(group: BindingGroup, parameters: ReadonlyMap<string, Tensor>, bucketBytes: number, findUnused: boolean) {
    this.#group = group
    this.#parameters = [...parameters.values()]
    this.#findUnused = findUnused
    const handles = this.#parameters.map(nativeOf)
    const firstBucketBytes = Math.min(FIRST_BUCKET_BYTES, bucketBytes)
    this.#native = native.reducerCreate(group, [...parameters.keys()], handles, bucketBytes, firstBucketBytes)
    this.#parameters.forEach((leaf, index) => registerGradReadyHook(leaf, () => this.#onGradient(leaf, index)))
  }

  /**
   * The next backward pass ends with averaged gradients.
   *
   * @param reachable what this forward's graph reaches; used with `findUnused` only
   */
  expectBackward(reachable: Iterable<Tensor>): void {
    this.#expected ??= new Set()
    for (const leaf of reachable) this.#expected.add(leaf)
  }

  /** Whether a forward has to say what its graph reaches. */
  get needsReachable(): boolean {
    return this.#findUnused
  }

  #onGradient(leaf: Tensor, index: number): void {
    if (this.#round === null && (this.#expected === null || !this.enabled)) {
      this.#unsynchronized.add(leaf)
      return
    }
    this.#round ??= this.#begin()
    this.#markReady(leaf, index)
  }

  #begin(): Round {
    queueBackwardCallback(() => this.#finish())
    onBackwardError(() => this.#abort())
    if (!this.#findUnused) return { reduced: native.reducerPrepare(this.#native, null) }
    const reached = this.#parameters.map((leaf) => this.#expected?.has(leaf) ?? false)
    const hasGradient = this.#parameters.map((leaf) => gradientOf(leaf) !== null)
    const waiting = this.#parameters.map((leaf, i) => hasGradient[i] === true && this.#unsynchronized.has(leaf))
    const anywhere = this.#usedAnywhere(reached.map((isReached, i) => isReached || waiting[i] === true))
    // A parameter outside this rank's graph takes part with what its gradient has accumulated before.
    const used = anywhere.map((isUsed, i) => isUsed && (reached[i] === true || hasGradient[i] === true))
    const reduced = native.reducerPrepare(this.#native, used)
    this.#parameters.forEach((leaf, i) => {
      if (used[i] && !reached[i]) this.#markReady(leaf, i)
    })
    return { reduced }
  }

  /** Which parameters any rank has a new gradient for. */
  #usedAnywhere(used: readonly boolean[]): boolean[] {
    const flags = native.tensorFromArray(Int32Array.from(used.map(Number)), [used.length], 'int32', 'contiguous', 'cpu')
    try {
      native.workWait(native.allReduce(this.#group, flags, 'max'))
      return Array.from(native.tensorToArray(flags, false) as Int32Array, (flag) => flag !== 0)
    } finally {
      native.tensorDispose(flags)
    }
  }

  #markReady(leaf: Tensor, index: number): void {
    native.reducerMarkReady(this.#native, index, nativeOf(gradientOf(leaf) as Tensor))
  }

  #finish(): void {
    const { reduced } = this.#round as Round
    const indices: number[] = []
    const gradients = this.#parameters.flatMap((leaf, index) => {
      if (!reduced[index]) return []
      if (gradientOf(leaf) === null && this.#findUnused) leaf.grad = zerosLike(leaf)
      const gradient = gradientOf(leaf)
      if (gradient === null) return []
      indices.push(index)
      return [nativeOf(gradient)]
    })
    native.reducerFinalize(this.#native, gradients, indices)
    this.#forget()
  }

  #abort(): void {
    native.reducerAbort(this.#native)
    this.#forget()
  }

  #forget(): void {
    this.#round = null
    this.#expected = null
    this.#unsynchronized.clear()
  }
}

/** A gradient for a parameter that only other ranks used; like every gradient, no tensor scope releases it. */
function zerosLike(leaf: Tensor): Tensor {
  return wrap(native.tensorFull([...leaf.shape], 0, leaf.dtype, leaf.memoryFormat, leaf.device))
}
