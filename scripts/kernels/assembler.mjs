/** Assembling the committed PTX for every architecture, as a driver would. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { StepError } from '../steps.mjs'
import { capture, inParallel } from './capture.mjs'

/** The architectures this ptxas assembles compute_75 for, without those for one family or chip alone: sm_75, … */
export async function architectures({ ptxas }) {
  const { output } = await capture(ptxas, ['--help'])
  const known = new Set([...output.matchAll(/'sm_(\d+)'/g)].map(([, number]) => Number(number)))
  if (!known.has(75) || !known.has(120)) {
    throw new StepError(`${ptxas} does not know sm_75 and sm_120, but ${[...known].join(', ') || 'nothing'}.`)
  }
  return [...known].sort((a, b) => a - b).map((number) => `sm_${number}`)
}

/**
 * Assembles every text for every architecture.
 *
 * @param {Map<string, string>} texts name -> PTX
 * @returns {Promise<{ problems: string[], registers: object[] }>} what ptxas refused or spilled, and the registers of
 *   every kernel: `{ module, entry, architecture, registers }`
 */
export async function assembleAll({ ptxas }, texts, targets) {
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-ptx-'))
  try {
    for (const [name, text] of texts) writeFileSync(join(folder, `${name}.ptx`), text)
    const runs = [...texts.keys()].flatMap((module) => targets.map((architecture) => ({ module, architecture })))
    const results = await inParallel(runs, (run) => assemble(ptxas, folder, run))
    return {
      problems: groupByArchitecture(results.flatMap((result) => result.problems)),
      registers: results.flatMap((result) => result.registers),
    }
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

async function assemble(ptxas, folder, { module, architecture }) {
  // The null device: ptxas insists on an output.
  const args = ['--verbose', `--gpu-name=${architecture}`, '--output-file', '/dev/null', `${module}.ptx`]
  const { code, output } = await capture(ptxas, args, { cwd: folder })
  const problem = (what) => ({ what: `${module}.ptx: ${what}`, architecture })
  if (code !== 0) return { problems: [problem(firstError(output))], registers: [] }
  const kernels = usage(output)
  // An assembler that says nothing of spills must not pass for one that saw none.
  const silent = kernels.length === 0 ? [problem('ptxas reported no kernels')] : []
  // An array that is not in registers lies on the stack, in memory, and counts as no spill.
  const slow = kernels.flatMap(({ entry, spills, stack }) => [
    ...(spills > 0 ? [problem(`${entry} spills ${spills} bytes`)] : []),
    ...(stack > 0 ? [problem(`${entry} has ${stack} bytes on its stack`)] : []),
  ])
  return {
    problems: [...silent, ...slow],
    registers: kernels.map(({ entry, registers }) => ({ module, entry, architecture, registers })),
  }
}

/** One line for what is wrong on several architectures. */
function groupByArchitecture(problems) {
  const byText = new Map()
  for (const { what, architecture } of problems) byText.set(what, [...(byText.get(what) ?? []), architecture])
  return [...byText].map(([what, where]) => `${what} (${where.join(' ')})`)
}

/** The first of many: ptxas repeats an error for every line that has it. */
function firstError(output) {
  const lines = output.trim().split('\n')
  return lines.find((line) => line.includes('error')) ?? lines[0]
}

/** What `ptxas --verbose` says of each kernel. */
function usage(output) {
  const kernels = output.split(/Compiling entry function /).slice(1)
  return kernels.map((text) => {
    const [, entry] = /^'(\w+)'/.exec(text) ?? []
    const [, stores, loads] = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(text) ?? []
    const [, registers] = /Used (\d+) registers/.exec(text) ?? []
    const [, stack] = /(\d+) bytes stack frame/.exec(text) ?? []
    if (registers === undefined || stores === undefined || stack === undefined)
      throw new StepError(`ptxas reports differently: ${text}`)
    return { entry, registers: Number(registers), spills: Number(stores) + Number(loads), stack: Number(stack) }
  })
}
