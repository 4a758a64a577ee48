/** State dicts of modules: reading, and loading with all checks before the first write. */
import { ArgumentError } from '../errors.ts'
import { sameShape } from '../ops/shape.ts'
import { copyInPlace, Tensor } from '../tensor.ts'
import { joinName, membersOf } from './module.ts'
import type { Module } from './module.ts'

/** Parameters and persistent buffers of `root`, by key, shared tensors at each of their places. */
function* persistentTensors(root: Module, prefix = ''): IterableIterator<[string, Tensor]> {
  const { parameters, buffers, modules } = membersOf(root)
  for (const member of [...parameters, ...buffers]) {
    if (member.persistent) yield [joinName(prefix, member.key), member.value]
  }
  for (const { key, value } of modules) yield* persistentTensors(value, joinName(prefix, key))
}

/** See `Module.stateDict`. */
export function readStateDict(root: Module): Map<string, Tensor> {
  const state = new Map<string, Tensor>()
  for (const [key, tensor] of persistentTensors(root)) state.set(key, tensor.detach())
  return state
}

/** See `Module.loadStateDict`. */
export function loadStateDict(
  root: Module,
  state: ReadonlyMap<string, Tensor>,
  strict: boolean,
): { missingKeys: string[]; unexpectedKeys: string[] } {
  const targets = new Map(persistentTensors(root))
  const missingKeys = [...targets.keys()].filter((key) => !state.has(key) && !isOldCounter(key, targets, state))
  const unexpectedKeys = [...state.keys()].filter((key) => !targets.has(key))
  const problems = mismatches(targets, state)
  if (strict) problems.unshift(...describeKeys('missing', missingKeys), ...describeKeys('unexpected', unexpectedKeys))
  if (problems.length > 0) {
    throw new ArgumentError('ERR_STATE_DICT', `loadStateDict of ${root.constructor.name}: ${problems.join('; ')}`)
  }
  for (const [key, target] of targets) {
    const source = state.get(key)
    if (source) copyInPlace(target, source)
  }
  return { missingKeys, unexpectedKeys }
}

/** Whether `key` is a batch counter that is missing though the rest of its module is there. */
function isOldCounter(key: string, targets: ReadonlyMap<string, Tensor>, state: ReadonlyMap<string, Tensor>): boolean {
  const counter = 'num_batches_tracked'
  if (key !== counter && !key.endsWith(`.${counter}`)) return false
  const prefix = key.slice(0, -counter.length)
  const siblings = [...targets.keys()].filter((other) => {
    return other !== key && other.startsWith(prefix) && !other.slice(prefix.length).includes('.')
  })
  return siblings.length > 0 && siblings.every((other) => state.has(other))
}

function describeKeys(what: string, keys: readonly string[]): string[] {
  return keys.length === 0 ? [] : [`${what} keys ${keys.map((key) => `'${key}'`).join(', ')}`]
}

function mismatches(targets: ReadonlyMap<string, Tensor>, state: ReadonlyMap<string, Tensor>): string[] {
  const problems: string[] = []
  for (const [key, target] of targets) {
    const source: unknown = state.get(key)
    if (source === undefined) continue
    if (!(source instanceof Tensor)) problems.push(`'${key}': expected a Tensor`)
    else if (!sameShape(source.shape, target.shape)) {
      problems.push(`'${key}': expected shape [${target.shape.join(', ')}], got [${source.shape.join(', ')}]`)
    }
  }
  return problems
}
