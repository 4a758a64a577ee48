/** Reads the reference vectors of __test__/fixtures; their README explains the format. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { loadSafetensors, type Device, type Tensor } from 'syncbn'

const FOLDER = new URL('../fixtures/', import.meta.url)

/** One case: its configuration, and its tensors by logical name. */
export class Case<C = Record<string, unknown>> {
  readonly name: string
  readonly dtype: string
  readonly config: C
  readonly #keys: Readonly<Record<string, string>>
  readonly #tensors: ReadonlyMap<string, Tensor>

  constructor(entry: Record<string, unknown>, tensors: ReadonlyMap<string, Tensor>) {
    this.name = entry['name'] as string
    this.dtype = entry['dtype'] as string
    this.config = entry as C
    this.#keys = entry['tensors'] as Record<string, string>
    this.#tensors = tensors
  }

  has(logicalName: string): boolean {
    return logicalName in this.#keys
  }

  /** The stored tensor, shared by all who ask: copy it before changing it. */
  get(logicalName: string): Tensor {
    const tensor = this.#tensors.get(this.#keys[logicalName] ?? '')
    if (!tensor) throw new Error(`${this.name}: no tensor '${logicalName}'`)
    return tensor
  }

  /** A copy, or null where the case has none. */
  copy(logicalName: string): Tensor | null {
    return this.has(logicalName) ? this.get(logicalName).clone() : null
  }

  /** Logical names that match. */
  names(pattern: RegExp): string[] {
    return Object.keys(this.#keys).filter((name) => pattern.test(name))
  }
}

/** The path of a file in __test__/fixtures. */
export function fixturePath(file: string): string {
  return fileURLToPath(new URL(file, FOLDER))
}

/** The cases of one fixture file, with their tensors on `device`. */
export async function loadCases<C = Record<string, unknown>>(name: string, device: Device = 'cpu'): Promise<Case<C>[]> {
  const entries = JSON.parse(readFileSync(new URL(`${name}.json`, FOLDER), 'utf8')) as Record<string, unknown>[]
  const tensors = await loadSafetensors(fixturePath(`${name}.safetensors`), { device })
  return entries.map((entry) => new Case<C>(entry, tensors))
}
