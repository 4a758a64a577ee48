/**
 * Builds the package: the native library into src/, then TypeScript and native library into dist/.
 *
 *   node scripts/build.mjs [--if-needed] [--debug]
 *
 * --if-needed skips a step whose outputs are newer than its sources; --debug builds the native library unoptimized.
 */
import { chmodSync, copyFileSync, readdirSync, rmSync, utimesSync } from 'node:fs'
import { join } from 'node:path'

import { files, main, requireRust, root, run, StepError, tool, upToDate } from './steps.mjs'

const OPTIONS = ['--if-needed', '--debug']
const GENERATED = ['binding.cjs', 'binding.d.ts']

/** Arguments of `napi build` that put its output into `folder`. */
export function napiArguments(folder, debug) {
  const outputs = ['--js', 'binding.cjs', '--dts', 'binding.d.ts', '--output-dir', folder]
  const profile = debug ? [] : ['--release']
  return ['build', '--platform', ...profile, '--manifest-path', 'crates/node/Cargo.toml', ...outputs]
}

async function step(sentence, program, args) {
  if ((await run(program, args)) !== 0) throw new StepError(sentence)
}

/** Rust files that are no part of the library. */
function isNotLinked(path) {
  return /[/\\]crates[/\\][^/\\]+[/\\](tests|examples|benches)[/\\]/.test(path)
}

function nativeLibraries(folder) {
  return readdirSync(join(root, folder)).filter((name) => name.endsWith('.node'))
}

async function buildNative(ifNeeded, debug) {
  const sources = files(['crates', 'Cargo.toml', 'Cargo.lock', '.cargo'], isNotLinked)
  const targets = [...nativeLibraries('src'), 'binding.cjs'].map((name) => join(root, 'src', name))
  if (ifNeeded && targets.length > 1 && upToDate(sources, targets)) return
  requireRust()
  await step(
    'The native library could not be built: see the messages above.',
    tool('napi'),
    napiArguments('src', debug),
  )
  // cargo leaves an output alone whose content would not change, which would look out of date here for ever.
  const now = new Date()
  for (const name of [...nativeLibraries('src'), ...GENERATED]) utimesSync(join(root, 'src', name), now, now)
}

async function buildTypeScript(ifNeeded) {
  const copied = [...nativeLibraries('src'), ...GENERATED]
  const sources = [...files(['src', 'tsconfig.json', 'package.json'])]
  const targets = ['index.js', ...copied].map((name) => join(root, 'dist', name))
  if (ifNeeded && upToDate(sources, targets)) return
  rmSync(join(root, 'dist'), { recursive: true, force: true })
  await step('The TypeScript sources do not compile: see the messages above.', tool('tsc'), ['-p', 'tsconfig.json'])
  for (const name of copied) {
    const target = join(root, 'dist', name)
    copyFileSync(join(root, 'src', name), target)
    utimesSync(target, new Date(), new Date())
  }
  chmodSync(join(root, 'dist', 'cli', 'main.js'), 0o755)
}

if (import.meta.filename === process.argv[1]) {
  await main(async (args) => {
    const unknown = args.find((arg) => !OPTIONS.includes(arg))
    if (unknown) throw new StepError(`build.mjs does not know '${unknown}'; it takes ${OPTIONS.join(' and ')}.`)
    const ifNeeded = args.includes('--if-needed')
    await buildNative(ifNeeded, args.includes('--debug'))
    await buildTypeScript(ifNeeded)
    return 0
  })
}
