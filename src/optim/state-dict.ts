/** State dicts of optimizers: keys 'param_groups.0.<option>', 'state.<i>.step', 'state.<i>.<tensor>'. */
import { ArgumentError } from '../errors.ts'
import { Handle } from '../handle.ts'
import type { TensorInfo } from '../handle.ts'
import { native } from '../native.ts'
import { sameShape } from '../ops/shape.ts'
import { handleOf, nativeOf, Tensor, wrap } from '../tensor.ts'
import type { Optimizer, ParameterState } from './optimizer.ts'

const GROUP = 'param_groups.0'

/** See `Optimizer.stateDict`. */
export function readOptimizerState(optimizer: Optimizer): Map<string, Tensor> {
  const state = new Map<string, Tensor>()
  for (const [name, value] of Object.entries(optimizer.readOptions())) {
    state.set(`${GROUP}.${name}`, scalar(Float64Array.of(value), 'float64'))
  }
  for (const [index, { step, moments, counter }] of optimizer.states) {
    const steps = counter ? native.tensorItem(counter.native) : step
    state.set(`state.${index}.step`, scalar(BigInt64Array.of(BigInt(steps)), 'int64'))
    for (const [name, handle] of moments) state.set(`state.${index}.${name}`, wrap(native.tensorClone(handle.native)))
  }
  return state
}

function scalar(data: Float64Array | BigInt64Array, dtype: 'float64' | 'int64'): Tensor {
  return wrap(native.tensorFromArray(data, [], dtype, 'contiguous', 'cpu'))
}

/** What of a state dict belongs to one parameter. */
interface Entry {
  readonly step: number
  readonly moments: ReadonlyMap<string, Tensor>
}

/** See `Optimizer.loadStateDict`. */
export function loadOptimizerState(optimizer: Optimizer, state: ReadonlyMap<string, Tensor>): void {
  const unread = new Set(state.keys())
  const take = (key: string): Tensor | null => {
    const value: unknown = state.get(key)
    unread.delete(key)
    if (value === undefined) return null
    if (!(value instanceof Tensor)) throw stateError(`expected '${key}' to be a Tensor`)
    return value
  }
  const options = readOptions(optimizer, take)
  const entries = optimizer.parameters.map((parameter, index) => readEntry(optimizer, parameter, index, take))
  if (unread.size > 0) throw stateError(`unexpected keys ${[...unread].map((key) => `'${key}'`).join(', ')}`)
  optimizer.writeOptions(options)
  replaceStates(optimizer, entries)
}

type Take = (key: string) => Tensor | null

function readOptions(optimizer: Optimizer, take: Take): Record<string, number> {
  const options: Record<string, number> = {}
  for (const name of Object.keys(optimizer.readOptions())) options[name] = requireScalar(`${GROUP}.${name}`, take)
  return options
}

function requireScalar(key: string, take: Take): number {
  const tensor = take(key)
  if (!tensor) throw stateError(`missing key '${key}'`)
  if (tensor.numel !== 1) throw stateError(`expected '${key}' to be one number, got shape [${tensor.shape.join(', ')}]`)
  return tensor.item()
}

/** The entry of parameter `index`; null if it has taken no step. */
function readEntry(optimizer: Optimizer, parameter: Tensor, index: number, take: Take): Entry | null {
  const moments = new Map<string, Tensor>()
  for (const name of optimizer.momentNames) {
    const key = `state.${index}.${name}`
    const moment = take(key)
    if (moment && !sameShape(moment.shape, parameter.shape)) {
      const [expected, got] = [parameter.shape.join(', '), moment.shape.join(', ')]
      throw stateError(`expected '${key}' to have shape [${expected}], got [${got}]`)
    }
    if (moment) moments.set(name, moment)
  }
  const step = take(`state.${index}.step`)
  if (!step && moments.size === 0) return null
  const missing = optimizer.momentNames.find((name) => !moments.has(name))
  if (missing !== undefined) throw stateError(`missing key 'state.${index}.${missing}'`)
  if (!step || step.numel !== 1) throw stateError(`missing key 'state.${index}.step'`)
  return { step: step.item(), moments }
}

function replaceStates(optimizer: Optimizer, entries: readonly (Entry | null)[]): void {
  entries.forEach((entry, index) => {
    const old = optimizer.states.get(index)
    if (entry) optimizer.states.set(index, takeOver(entry, optimizer.parameters[index] as Tensor, old))
    else if (old) drop(optimizer, index, old)
  })
}

/**
 * The entry's values, in the memory of the state before where there is some: a recorded step (`cuda.capture`) goes on
 * using it.
 */
function takeOver({ step, moments }: Entry, parameter: Tensor, old: ParameterState | undefined): ParameterState {
  const taken = new Map<string, Handle>()
  for (const [name, tensor] of moments) {
    const target = fitting(old?.moments.get(name), handleOf(parameter).info)
    native.tensorCopyInPlace(target.native, nativeOf(tensor))
    taken.set(name, target)
  }
  for (const [name, handle] of old?.moments ?? []) if (taken.get(name) !== handle) handle.release()
  if (old?.counter) native.tensorFillInPlace(old.counter.native, step)
  return { step, moments: taken, counter: old?.counter ?? null }
}

/** `handle` if it is like the parameter, else new memory like it. */
function fitting(handle: Handle | undefined, { dtype, memoryFormat, shape, device }: TensorInfo): Handle {
  const info = handle?.info
  const fits = info?.dtype === dtype && info.memoryFormat === memoryFormat && info.device === device
  return handle && fits ? handle : new Handle(native.tensorFull([...shape], 0, dtype, memoryFormat, device))
}

function drop(optimizer: Optimizer, index: number, { moments, counter }: ParameterState): void {
  for (const handle of moments.values()) handle.release()
  counter?.release()
  optimizer.states.delete(index)
}

function stateError(message: string): ArgumentError {
  return new ArgumentError('ERR_STATE_DICT', `optimizer loadStateDict: ${message}`)
}
