/** Walks over the gradient graph; iterative, so that long chains of operations do not overflow the stack. */
import { edgeOf } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { AccumulateGrad } from './leaf.ts'
import type { Node } from './node.ts'

/** Every node that can be reached from `roots`, roots included. */
export function reachable(roots: Iterable<Node>): Set<Node> {
  const found = new Set<Node>(roots)
  // A Set iterates over what is added to it on the way.
  for (const node of found) {
    for (const edge of node.edges) if (edge) found.add(edge.node)
  }
  return found
}

/** How many reachable edges lead to each node. */
export function countDependencies(nodes: Iterable<Node>): Map<Node, number> {
  const counts = new Map<Node, number>()
  for (const node of nodes) {
    for (const edge of node.edges) if (edge) counts.set(edge.node, (counts.get(edge.node) ?? 0) + 1)
  }
  return counts
}

/** Those of `nodes` from which a target can be reached, targets included. */
export function leadingTo(nodes: ReadonlySet<Node>, targets: Iterable<Node>): Set<Node> {
  const sources = new Map<Node, Node[]>()
  for (const node of nodes) {
    for (const edge of node.edges) {
      if (!edge) continue
      const known = sources.get(edge.node)
      if (known) known.push(node)
      else sources.set(edge.node, [node])
    }
  }
  const found = new Set<Node>()
  for (const target of targets) if (nodes.has(target)) found.add(target)
  for (const node of found) for (const source of sources.get(node) ?? []) found.add(source)
  return found
}

/** The leaves whose gradient a backward from `outputs` would add to. */
export function reachableLeaves(outputs: readonly Tensor[]): Set<Tensor> {
  const roots = outputs.map(edgeOf).filter((edge) => edge !== null)
  const leaves = new Set<Tensor>()
  for (const node of reachable(roots.map((edge) => edge.node))) {
    if (node instanceof AccumulateGrad) leaves.add(node.leaf)
  }
  return leaves
}
