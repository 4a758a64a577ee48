/**
 * The base of everything with parameters: registration, traversal, modes, state, hooks, and the call.
 *
 * Fields that hold modules or parameters register themselves; traversals visit an object once however many places hold
 * it, in PyTorch's order.
 */
import { isFloating, isHalf, parseConversion } from '../device.ts'
import { argumentError, DTypeError } from '../errors.ts'

import { exempt, runScope } from '../scope.ts'
import { describe, isLeaf, isParameter, Tensor } from '../tensor.ts'
import type { ConversionTarget } from '../types.ts'
import { convertInPlace } from './convert-tensor.ts'
import { addHook, ModuleHooks, runForwardHooks, withBackwardHooks } from './hooks.ts'
import type { ForwardHook, FullBackwardHook, HookHandle } from './hooks.ts'
import { markParameter } from './parameter.ts'
import { membersOf as readMembers, Registry } from './registry.ts'
import type { Member, Members, RegistrationOptions } from './registry.ts'
import { loadStateDict, readStateDict } from './state-dict.ts'

interface ModuleState {
  registry: Registry
  hooks: ModuleHooks
}

let readState: (module: Module) => ModuleState

/** A part of a network. Subclasses write `forward`; callers use `call`. */
export abstract class Module {
  /** Whether the module is in training mode: see `train` and `eval`. */
  training = true
  readonly #state: ModuleState = { registry: new Registry(), hooks: new ModuleHooks() }

  static {
    readState = (module) => module.#state
  }

  /** What the module computes. */
  abstract forward(...inputs: Tensor[]): Tensor

  /**
   * Runs `forward` and the hooks in a tensor scope: tensors made inside and not returned, kept, registered or saved for
   * backward are disposed when it ends.
   *
   * @throws ArgumentError if `forward` does not return a tensor
   */
  call(...inputs: Tensor[]): Tensor {
    const { hooks } = this.#state
    return runScope(() =>
      withBackwardHooks(this, hooks, inputs, (seen) => {
        const output: unknown = this.forward(...seen)
        if (output instanceof Tensor) return runForwardHooks(this, hooks, seen, output)
        throw argumentError(`${this.constructor.name}.forward: expected to return a Tensor, got ${describe(output)}`)
      }),
    )
  }

  /**
   * Makes `parameter`, a leaf of a floating-point dtype, the field and parameter `name`; null reserves the name.
   *
   * @throws ArgumentError for a name that is empty, has a dot or is taken, and for a tensor that is not a leaf
   */
  registerParameter(name: string, parameter: Tensor | null): void {
    registerParameterAs(this, name, name, parameter)
  }

  /**
   * Makes `buffer` the field and buffer `name`: part of the module's state but not trained; null reserves the name.
   *
   * @param options `persistent`: whether state dicts have it. Default: true.
   * @throws ArgumentError for a name that is empty, has a dot or is taken
   */
  registerBuffer(name: string, buffer: Tensor | null, options: { persistent?: boolean } = {}): void {
    registerBufferAs(this, name, name, buffer, { persistent: options.persistent ?? true })
  }

  /**
   * Makes `module` the field and submodule `name`: for modules whose number is not known when the class is written.
   *
   * @throws ArgumentError for a name that is empty, has a dot or is taken, and for what is no module
   */
  registerModule(name: string, module: Module): void {
    if (!(module instanceof Module)) throw argumentError(`registerModule: expected a Module, got ${describe(module)}`)
    this.#state.registry.register(this, name, 'module', module, {})
  }

  /** Calls `hook` after each forward, with what it returned; a tensor that the hook returns replaces it. */
  registerForwardHook(hook: ForwardHook): HookHandle {
    return addHook(this.#state.hooks.forward, hook)
  }

  /**
   * Calls `hook` when the gradients of a call's inputs are known, with one gradient per input that requires one, and the
   * gradient of the output. Tensors that it returns replace those of the inputs. The tensors are disposed after the
   * hook unless kept.
   */
  registerFullBackwardHook(hook: FullBackwardHook): HookHandle {
    return addHook(this.#state.hooks.backward, hook)
  }

  /** The parameters of this module and all below, each once. */
  *parameters(): IterableIterator<Tensor> {
    for (const [, parameter] of this.namedParameters()) yield parameter
  }

  /** `parameters` with their names, such as 'layer1.0.weight'. */
  *namedParameters(): IterableIterator<[string, Tensor]> {
    yield* namedTensors(this, (members) => members.parameters)
  }

  /** The buffers of this module and all below, each once. */
  *buffers(): IterableIterator<Tensor> {
    for (const [, buffer] of this.namedBuffers()) yield buffer
  }

  /** `buffers` with their names, such as 'layer1.0.running_mean'. */
  *namedBuffers(): IterableIterator<[string, Tensor]> {
    yield* namedTensors(this, (members) => members.buffers)
  }

  /** The modules directly below, each once. */
  *children(): IterableIterator<Module> {
    yield* new Set(membersOf(this).modules.map((member) => member.value))
  }

  /** This module and all below, each once, parents first. */
  *modules(): IterableIterator<Module> {
    for (const [, module] of this.namedModules()) yield module
  }

  /** `modules` with their names, such as 'layer1.0'; this module's is ''. */
  *namedModules(): IterableIterator<[string, Module]> {
    yield* walkModules(this, '', new Set())
  }

  /** Calls `fn` with every module below and then with this one. */
  apply(fn: (module: Module) => void): this {
    for (const child of this.children()) child.apply(fn)
    fn(this)
    return this
  }

  /** Puts this module and all below in training mode, or out of it. */
  train(mode = true): this {
    if (typeof mode !== 'boolean') throw argumentError(`train: expected a boolean, got ${describe(mode)}`)
    this.training = mode
    for (const child of this.children()) child.train(mode)
    return this
  }

  /** Puts this module and all below in evaluation mode. */
  eval(): this {
    return this.train(false)
  }

  /**
   * Moves and converts parameters, buffers and gradients in place: they stay the same objects. A dtype converts
   * floating-point tensors only, and float16 and bfloat16 leave a batch norm's running statistics as they are, which 16
   * bits could not average; 'channelsLast' converts tensors of 4 dimensions, 'channelsLast3d' those of 5. Move a
   * module before DistributedDataParallel is made around it.
   *
   * @throws DTypeError for an integer dtype; DeviceError for a device that is not there. Nothing is changed then.
   */
  to(target: ConversionTarget): this {
    const conversion = parseConversion(target, 'to')
    if (conversion.dtype && !isFloating(conversion.dtype)) {
      throw new DTypeError('ERR_DTYPE', `Module.to: expected a floating-point dtype, got ${conversion.dtype}`)
    }
    const withoutHalf = conversion.dtype && isHalf(conversion.dtype) ? { ...conversion, dtype: null } : conversion
    for (const module of this.modules()) {
      const { parameters, buffers } = membersOf(module)
      for (const { value, atLeastFloat32 } of [...parameters, ...buffers]) {
        convertInPlace(value, atLeastFloat32 ? withoutHalf : conversion)
      }
    }
    return this
  }

  /** Sets `requiresGrad` of every parameter. */
  requiresGrad_(value = true): this {
    for (const parameter of this.parameters()) parameter.requiresGrad = value
    return this
  }

  /** Sets `grad` of every parameter to null. */
  zeroGrad(): void {
    for (const parameter of this.parameters()) parameter.grad = null
  }

  /**
   * Parameters and persistent buffers by PyTorch's keys, such as 'layer1.0.bn1.running_mean', detached, on the same
   * storage. A tensor that is registered in several places has several keys.
   */
  stateDict(): Map<string, Tensor> {
    return readStateDict(this)
  }

  /**
   * Copies `state` into parameters and persistent buffers, converting device, dtype and memory format. Everything is checked
   * before the first copy.
   *
   * A key 'num_batches_tracked' may be missing where all other keys of its module are there: files written before
   * PyTorch 0.4.1 lack it, and the current number is kept.
   *
   * @param options `strict`: whether missing and unexpected keys are an error. Default: true.
   * @returns the missing and the unexpected keys
   * @throws ArgumentError (ERR_STATE_DICT) for such keys if strict, and for shapes that differ
   */
  loadStateDict(
    state: ReadonlyMap<string, Tensor>,
    options: { strict?: boolean } = {},
  ): { missingKeys: string[]; unexpectedKeys: string[] } {
    return loadStateDict(this, state, options.strict ?? true)
  }
}

/** What the fields of `module` hold. */
export function membersOf(module: Module): Members {
  return readMembers(module, readState(module).registry)
}

/** Registers a parameter under a key that differs from its field. */
export function registerParameterAs(module: Module, field: string, key: string, value: Tensor | null): void {
  if (value !== null) checkLeaf(value, field)
  readState(module).registry.register(module, field, 'parameter', value && markUnlessFrozen(value), { key })
}

/** A tensor that was made a parameter before keeps its `requiresGrad`. */
function markUnlessFrozen(tensor: Tensor): Tensor {
  const frozen = isParameter(tensor) && !tensor.requiresGrad
  markParameter(tensor)
  if (frozen) tensor.requiresGrad = false
  return tensor
}

/** Registers a buffer under a key that differs from its field. */
export function registerBufferAs(
  module: Module,
  field: string,
  key: string,
  value: Tensor | null,
  options: Omit<RegistrationOptions, 'key'> = {},
): void {
  if (value !== null && !(value instanceof Tensor)) {
    throw argumentError(`registerBuffer: expected a Tensor or null for '${field}', got ${describe(value)}`)
  }
  readState(module).registry.register(module, field, 'buffer', value && exempt(value), { key, ...options })
}

function checkLeaf(value: unknown, field: string): void {
  if (!(value instanceof Tensor)) {
    throw argumentError(`registerParameter: expected a Tensor or null for '${field}', got ${describe(value)}`)
  }
  if (!isLeaf(value))
    throw argumentError(`registerParameter: expected a leaf for '${field}', got the result of an operation`)
}

/** Gives `to` the registered names and hooks of `from`: a hook's `remove` works on both. */
export function shareHooksAndRegistrations(from: Module, to: Module): void {
  const { hooks, registry } = readState(from)
  Object.assign(readState(to), { hooks, registry })
}

/** Names of modules and their members joined by dots. */
export function joinName(prefix: string, name: string): string {
  return prefix === '' ? name : `${prefix}.${name}`
}

function* walkModules(module: Module, name: string, seen: Set<Module>): IterableIterator<[string, Module]> {
  if (seen.has(module)) return
  seen.add(module)
  yield [name, module]
  for (const { key, value } of membersOf(module).modules) yield* walkModules(value, joinName(name, key), seen)
}

function* namedTensors(
  root: Module,
  select: (members: Members) => Member<Tensor>[],
): IterableIterator<[string, Tensor]> {
  const seen = new Set<Tensor>()
  for (const [name, module] of root.namedModules()) {
    for (const { key, value } of select(membersOf(module))) {
      if (seen.has(value)) continue
      seen.add(value)
      yield [joinName(name, key), value]
    }
  }
}
