/** Running many programs at once and reading what they write. */
import { spawn } from 'node:child_process'
import { availableParallelism } from 'node:os'

import { root, StepError } from '../steps.mjs'

/**
 * Runs a program without showing its output.
 *
 * @returns {Promise<{ code: number, stdout: string, output: string }>} `output` is standard output and error together
 */
export function capture(program, args, { cwd = root } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd, stdio: ['ignore', 'pipe', 'pipe'] })
    let stdout = ''
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text
      output += text
    })
    child.stderr.setEncoding('utf8').on('data', (text) => (output += text))
    child.on('error', (error) => reject(new StepError(`${program} cannot be started: ${error.message}`)))
    child.on('close', (code, signal) => resolve({ code: code ?? (signal ? 1 : 0), stdout, output }))
  })
}

/** Applies an asynchronous function to all items, as many at a time as there are cores; results in the items' order. */
export async function inParallel(items, apply) {
  const results = []
  const queue = [...items.entries()]
  const worker = async () => {
    for (let next = queue.shift(); next; next = queue.shift()) results[next[0]] = await apply(next[1])
  }
  await Promise.all(Array.from({ length: availableParallelism() }, worker))
  return results
}
