/**
 * What a module is made of: parameters, buffers and modules, found in its own fields.
 *
 * A field whose value is a Module, or a tensor made by `parameter`, registers itself; buffers are registered by name. A
 * registered name may differ from its field (state-dict keys are PyTorch's, fields are camelCase).
 */
import { argumentError } from '../errors.ts'
import { exempt } from '../scope.ts'
import { stateOf, Tensor } from '../tensor.ts'
import { Module } from './module.ts'

type Kind = 'parameter' | 'buffer' | 'module'

interface Registration {
  readonly kind: Kind
  /** The name in state dicts. */
  readonly key: string
  readonly persistent: boolean
  /** Whether conversions leave it as it is rather than make it float16 or bfloat16. */
  readonly atLeastFloat32: boolean
}

/** How a member is registered; see `Registration`. */
export interface RegistrationOptions {
  readonly key?: string
  readonly persistent?: boolean
  readonly atLeastFloat32?: boolean
}

/** A member: its name, the field that holds it, and its value. */
export interface Member<T> {
  readonly key: string
  readonly field: string
  readonly value: T
  readonly persistent: boolean
  readonly atLeastFloat32: boolean
}

/** The explicit registrations of one module, by field. */
export class Registry {
  readonly #byField = new Map<string, Registration>()

  get(field: string): Registration | undefined {
    return this.#byField.get(field)
  }

  /** Registers `field` of `owner` and sets it. Throws for a name that is empty, has a dot or is taken. */
  register(owner: Module, field: string, kind: Kind, value: unknown, options: RegistrationOptions): void {
    this.#checkName(owner, field, kind)
    const { key = field, persistent = true, atLeastFloat32 = false } = options
    this.#byField.set(field, { kind, key, persistent, atLeastFloat32 })
    Object.defineProperty(owner, field, { value, writable: true, enumerable: true, configurable: true })
  }

  #checkName(owner: Module, field: string, kind: Kind): void {
    if (typeof field !== 'string' || field === '' || field.includes('.')) {
      throw argumentError(`register ${kind}: expected a name without dots, got ${JSON.stringify(field)}`)
    }
    const known = this.#byField.get(field)?.kind ?? kind
    const value: unknown = Reflect.get(owner, field)
    const free = value === undefined || value === null || value instanceof Tensor || value instanceof Module
    if (known !== kind || !free) throw argumentError(`register ${kind}: the name '${field}' is taken`)
  }
}

/** What the fields of one module hold, in the order of their definition. */
export interface Members {
  readonly parameters: Member<Tensor>[]
  readonly buffers: Member<Tensor>[]
  readonly modules: Member<Module>[]
}

/** Reads the fields of `module`. */
export function membersOf(module: Module, registry: Registry): Members {
  const members: Members = { parameters: [], buffers: [], modules: [] }
  for (const [field, value] of Object.entries(module)) addMember(members, field, value, registry.get(field))
  return members
}

function addMember(members: Members, field: string, value: unknown, registration: Registration | undefined): void {
  if (value instanceof Module) {
    members.modules.push(member(field, value, registration))
  } else if (value instanceof Tensor) {
    if (registration?.kind === 'buffer') members.buffers.push(member(field, exempt(value), registration))
    else if (stateOf(value).isParameter) members.parameters.push(member(field, value, registration))
  }
}

/** One object and no more: fields are read in every call of a module. */
function member<T>(field: string, value: T, registration: Registration | undefined): Member<T> {
  return {
    key: registration?.key ?? field,
    field,
    value,
    persistent: registration?.persistent ?? true,
    atLeastFloat32: registration?.atLeastFloat32 ?? false,
  }
}
