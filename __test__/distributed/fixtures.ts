/** Reads the reference vectors (fixtures/README.md) into plain arrays. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import { loadSafetensors, type Tensor } from 'syncbn'

/** One case of a manifest. */
export interface FixtureCase {
  name: string
  dtype: 'float32' | 'float64'
  worldSize: number
  groups: number[][]
  shapes: number[][]
  momentum: number | null
  eps: number
  affine: boolean
  steps: number
  tensors: Record<string, string>
  conditioning: number
  plainError: Record<string, number>
  pytorchError: Record<string, number>
}

const pathOf = (name: string): string => fileURLToPath(new URL(`../fixtures/${name}`, import.meta.url))

/** The entries of `NAME.json`. */
export function readManifest<T>(name: string): T[] {
  return JSON.parse(readFileSync(pathOf(`${name}.json`), 'utf8')) as T[]
}

/** The tensors of `NAME.safetensors`, by logical name of a case. */
export async function openVectors(name: string): Promise<(entry: FixtureCase, logicalName: string) => Tensor | null> {
  const tensors = await loadSafetensors(pathOf(`${name}.safetensors`))
  return (entry, logicalName) => tensors.get(entry.tensors[logicalName] ?? '') ?? null
}
