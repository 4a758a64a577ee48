/** State dicts of optimizers: keys 'param_groups.0.<option>', 'state.<i>.step', 'state.<i>.<tensor>'. */
import { ArgumentError } from '../errors.ts'
import { Handle } from '../handle.ts'
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
  for (const [index, { step, moments }] of optimizer.states) {
    state.set(`state.${index}.step`, scalar(BigInt64Array.of(BigInt(step)), 'int64'))
    for (const [name, handle] of moments) state.set(`state.${index}.${name}`, wrap(native.tensorClone(handle.native)))
  }
  return state
}

function scalar(data: Float64Array | BigInt64Array, dtype: 'float64' | 'int64'): Tensor {
  return wrap(native.tensorFromArray(data, [], dtype, 'contiguous'))
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
  for (const { moments } of optimizer.states.values()) for (const handle of moments.values()) handle.release()
  optimizer.states.clear()
  entries.forEach((entry, index) => {
    if (entry) optimizer.states.set(index, copyEntry(entry, optimizer.parameters[index] as Tensor))
  })
}

function copyEntry({ step, moments }: Entry, parameter: Tensor): ParameterState {
  const { dtype, memoryFormat, shape } = handleOf(parameter).info
  const copies = new Map<string, Handle>()
  for (const [name, tensor] of moments) {
    const copy = new Handle(native.tensorFull([...shape], 0, dtype, memoryFormat))
    native.tensorCopyInPlace(copy.native, nativeOf(tensor))
    copies.set(name, copy)
  }
  return { step, moments: copies }
}

function stateError(message: string): ArgumentError {
  return new ArgumentError('ERR_STATE_DICT', `optimizer loadStateDict: ${message}`)
}
