/**
 * What the scripts share: the repository's root, running a program, and looking at the ages of files.
 */
import { spawn, spawnSync } from 'node:child_process'
import { readdirSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))

/** Something the user can put right; the message is the one sentence to show. */
export class StepError extends Error {}

/**
 * Runs a program in the root and shows its output.
 *
 * @param {string} program
 * @param {string[]} args
 * @param {{ onText?: (text: string) => void, env?: NodeJS.ProcessEnv }} [options] `onText` also gets what it writes
 * @returns {Promise<number>} its exit code
 */
export function run(program, args, { onText, env = process.env } = {}) {
  return new Promise((resolve, reject) => {
    const stdio = onText ? ['inherit', 'pipe', 'pipe'] : 'inherit'
    const child = spawn(program, args, { cwd: root, env, stdio })
    const copy = (target) => (chunk) => {
      target.write(chunk)
      onText?.(String(chunk))
    }
    child.stdout?.on('data', copy(process.stdout))
    child.stderr?.on('data', copy(process.stderr))
    child.on('error', (error) => reject(new StepError(`${program} cannot be started: ${error.message}`)))
    child.on('close', (code, signal) => resolve(code ?? (signal ? 1 : 0)))
  })
}

/** The path of a program of a development dependency. */
export function tool(name) {
  const path = join(root, 'node_modules', '.bin', name)
  if (!statSync(path, { throwIfNoEntry: false })) {
    throw new StepError(`${name} is not installed: run \`npm ci\` first.`)
  }
  return path
}

/** Whether a program can be started. */
export function exists(program) {
  return spawnSync(program, ['--version'], { stdio: 'ignore' }).error === undefined
}

/** Whether Rust code can be built here; throws the sentence to show when not. */
export function requireRust() {
  if (!exists('cargo')) {
    throw new StepError('Rust is not installed: get it from https://rustup.rs, then run this again.')
  }
  const linker = process.env.CC ?? 'cc'
  const configured = Object.keys(process.env).some((name) => /^CARGO_TARGET_.*_LINKER$/.test(name))
  if (process.platform !== 'win32' && !configured && !exists(linker)) {
    throw new StepError(
      `No C compiler ('${linker}') to link with: install one (Debian: build-essential, macOS: xcode-select --install).`,
    )
  }
}

/** The folder of the fake libcuda, libnccl and libcublas, for LD_LIBRARY_PATH; built if they are out of date. */
export function fakesFolder() {
  requireRust()
  const args = ['run', '--quiet', '--package', 'syncbn-fake-cuda', '--', 'path']
  const { status, stdout, stderr } = spawnSync('cargo', args, { cwd: root, encoding: 'utf8' })
  if (status !== 0) throw new StepError(`The fake GPU libraries could not be built:\n${stderr}`)
  return stdout.trim()
}

/** The files under the given paths of the root, without those that `skip` names. */
export function files(paths, skip = () => false) {
  return paths.flatMap((path) => walk(join(root, path))).filter((path) => !skip(path))
}

function walk(path) {
  const entry = statSync(path, { throwIfNoEntry: false })
  if (!entry) return []
  if (!entry.isDirectory()) return [path]
  return readdirSync(path)
    .filter((name) => name !== 'target' && name !== 'node_modules')
    .flatMap((name) => walk(join(path, name)))
}

/** Whether every target exists and none is older than any source. */
export function upToDate(sources, targets) {
  const modified = (path) => statSync(path, { throwIfNoEntry: false })?.mtimeMs ?? -Infinity
  const oldest = targets.length === 0 ? -Infinity : Math.min(...targets.map(modified))
  return sources.every((path) => modified(path) <= oldest)
}

/** Runs a script's main function: a StepError becomes one sentence and exit code 1. */
export async function main(body) {
  try {
    process.exitCode = await body(process.argv.slice(2))
  } catch (error) {
    if (!(error instanceof StepError)) throw error
    process.stderr.write(`${error.message}\n`)
    process.exitCode = 1
  }
}
