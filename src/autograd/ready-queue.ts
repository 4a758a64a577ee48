/** Nodes that are ready to run, the latest operation first: a binary heap. */
import type { Node } from './node.ts'

export class ReadyQueue {
  readonly #heap: Node[] = []

  get size(): number {
    return this.#heap.length
  }

  push(node: Node): void {
    const heap = this.#heap
    let hole = heap.push(node) - 1
    while (hole > 0) {
      const parent = (hole - 1) >> 1
      const above = heap[parent] as Node
      if (above.sequence >= node.sequence) break
      heap[hole] = above
      hole = parent
    }
    heap[hole] = node
  }

  /** The node with the highest sequence number. */
  pop(): Node | undefined {
    const heap = this.#heap
    const top = heap[0]
    const last = heap.pop()
    if (last && heap.length > 0) this.#sink(last)
    return top
  }

  #sink(node: Node): void {
    const heap = this.#heap
    let hole = 0
    for (;;) {
      let child = 2 * hole + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && later(heap[child + 1] as Node, heap[child] as Node)) child += 1
      if (!later(heap[child] as Node, node)) break
      heap[hole] = heap[child] as Node
      hole = child
    }
    heap[hole] = node
  }
}

function later(a: Node, b: Node): boolean {
  return a.sequence > b.sequence
}
