/** What a collective returns at once: something to await, or to block on. */
import { type BindingWork, native } from '../native.ts'

/**
 * A collective that is under way. `await` it, or call `wait()`, which blocks this thread. Awaited, it is done on the GPU,
 * too.
 *
 * The operations of one group run in the order in which the program called them. Data given as typed arrays is copied
 * back when the work is waited for or awaited, whichever comes first, and not before.
 */
export interface Work extends PromiseLike<void> {
  /**
   * Blocks until the operation is done, at most until the group's deadline. For tensors on a GPU it does not block: what
   * is enqueued on the device from now on sees the result.
   *
   * @throws TimeoutError, PeerLostError, MismatchError or another DistributedError: what ended the operation. On a GPU,
   *   what ends it later is thrown by the next wait for the device or call on the group.
   */
  wait(): void
  /** Whether the operation has ended, well or not; on a GPU, whether the device is done with it. */
  readonly completed: boolean
}

/** Things to do when a work ends: once, on the JavaScript thread. */
export interface Completion {
  /** The operation succeeded: hand its results over. */
  deliver(): void
  /** In any case, after `deliver`: free what the operation needed. */
  release(): void
}

/** The `Work` of a native operation. */
export class CollectiveWork implements Work {
  readonly #work: BindingWork
  #completion: Completion | null
  #promise: Promise<void> | null = null

  constructor(work: BindingWork, completion: Completion | null) {
    this.#work = work
    this.#completion = completion
  }

  get completed(): boolean {
    return native.workCompleted(this.#work)
  }

  wait(): void {
    try {
      native.workWait(this.#work)
    } catch (error) {
      this.#finish(false)
      throw error
    }
    this.#finish(true)
  }

  then<R = void, E = never>(
    onFulfilled?: ((value: void) => R | PromiseLike<R>) | null,
    onRejected?: ((reason: unknown) => E | PromiseLike<E>) | null,
  ): Promise<R | E> {
    this.#promise ??= native.workPromise(this.#work).then(
      () => this.#finish(true),
      (error: unknown) => {
        this.#finish(false)
        throw error
      },
    )
    return this.#promise.then(onFulfilled, onRejected)
  }

  #finish(succeeded: boolean): void {
    const completion = this.#completion
    this.#completion = null
    if (completion === null) return
    try {
      if (succeeded) completion.deliver()
    } finally {
      completion.release()
    }
  }
}
