/** From .cu to the text that is committed, and what that text says of its entry points. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { root, StepError } from '../steps.mjs'
import { capture, inParallel } from './capture.mjs'

export const KERNELS = 'crates/cuda/kernels'

/** Turing is the oldest architecture that CUDA 13 knows; the driver compiles the text for all younger ones. */
const FLAGS = ['-ptx', '-arch=compute_75', '-std=c++17', '-Werror', 'all-warnings']

/** PTX that drivers from CUDA 11.4 (470) on load. Nothing younger is used; the assembler has the last word on that. */
const PTX_VERSION = '7.4'

/**
 * Compiles every file.
 *
 * @returns {Promise<Map<string, string>>} name without ending -> PTX
 */
export async function compileAll(tools) {
  const sources = readdirSync(join(root, KERNELS)).filter((name) => name.endsWith('.cu'))
  if (sources.length === 0) throw new StepError(`There are no .cu files in ${KERNELS}.`)
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-kernels-'))
  try {
    const names = sources.sort().map((name) => name.slice(0, -'.cu'.length))
    const texts = await inParallel(names, (name) => compile(tools, name, join(folder, `${name}.ptx`)))
    return new Map(names.map((name, i) => [name, texts[i]]))
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

/** Names are relative, so that no path of this machine can get into the text. */
async function compile({ nvcc }, name, output) {
  const { code, output: messages } = await capture(nvcc, [...FLAGS, '-o', output, `${name}.cu`], {
    cwd: join(root, KERNELS),
  })
  if (code !== 0) throw new StepError(`nvcc cannot compile ${KERNELS}/${name}.cu:\n${messages.trim()}`)
  return canonical(name, readFileSync(output, 'utf8'))
}

/**
 * A hint of PTX 8.3 on which bytes of the next load are used. LLVM leaves it out for older versions, as is done here:
 * https://github.com/llvm/llvm-project/pull/171220
 */
const YOUNGER_HINT = /^\s*\.pragma "used_bytes_mask \w+";$/

/** The text with the lowered version, and without comments, some of which name the compiler's build. */
function canonical(name, text) {
  const lines = text.split('\n').map((line) => line.replace(/\/\/.*$/, '').trimEnd())
  const code = lines.filter((line) => line !== '' && !YOUNGER_HINT.test(line)).join('\n')
  const lowered = code.replace(/^\.version \d+\.\d+$/m, `.version ${PTX_VERSION}`)
  if (!lowered.startsWith(`.version ${PTX_VERSION}\n`)) {
    throw new StepError(`The PTX of ${name}.cu does not begin with its version.`)
  }
  return `// Made of kernels/${name}.cu by scripts/kernels.mjs; not to be edited.\n${lowered}\n`
}

/**
 * The entry points of a module.
 *
 * @returns {{ module: string, entry: string, parameters: { bytes: number, alignment: number }[] }[]} a parameter that
 *   is no structure has 0 bytes
 */
export function entries(module, text) {
  return [...text.matchAll(/^\.visible \.entry (\w+)\(([^)]*)\)/gm)].map(([, entry, list]) => {
    const parameters = list.split(',').filter((parameter) => parameter.trim() !== '')
    return { module, entry, parameters: parameters.map(structure) }
  })
}

function structure(parameter) {
  const match = /\.param \.align (\d+) \.b8 \w+\[(\d+)\]/.exec(parameter)
  return { alignment: Number(match?.[1] ?? 0), bytes: Number(match?.[2] ?? 0) }
}
