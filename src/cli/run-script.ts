/**
 * How a script is handed to Node: as it is, with Node's own type stripping, or through an installed TypeScript loader.
 */
import { statSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, extname, join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'

import { UsageError } from './launch-options.ts'

const JAVASCRIPT = ['.js', '.mjs', '.cjs']
const TYPESCRIPT = ['.ts', '.mts', '.cts']
/** The first Node release of the 22 line that strips types without a flag and without a warning. */
const STRIPS_TYPES = [22, 18] as const

/**
 * Node's arguments before the script's own: loader flags, if any, then the script's absolute path.
 *
 * @throws UsageError when there is no such file, the extension is unknown, or TypeScript has no loader
 */
export function scriptArguments(script: string): string[] {
  const path = resolve(script)
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) throw new UsageError(`there is no file ${path}`)
  const extension = extname(path)
  if (JAVASCRIPT.includes(extension)) return [path]
  if (TYPESCRIPT.includes(extension)) return [...typescriptFlags(path), path]
  throw new UsageError(`${script}: expected a file ending in ${[...JAVASCRIPT, ...TYPESCRIPT].join(', ')}`)
}

function typescriptFlags(path: string): string[] {
  if (nodeStripsTypes(process.versions.node)) return []
  const loader = findLoader([dirname(path), process.cwd()])
  if (loader !== null) return ['--import', pathToFileURL(loader).href]
  throw new UsageError(
    `Node ${process.versions.node} cannot run ${path} by itself: install tsx or @oxc-node/core beside it ` +
      `(npm install --save-dev tsx), or use Node ${STRIPS_TYPES.join('.')} or newer`,
  )
}

/** Whether this version of Node runs TypeScript files that hold only erasable syntax. */
export function nodeStripsTypes(version: string): boolean {
  const [major = 0, minor = 0] = version.split('.').map(Number)
  // Node 23 came first with the flag's default off; from 23.6 on it is on.
  if (major === 23) return minor >= 6
  return major > STRIPS_TYPES[0] || (major === STRIPS_TYPES[0] && minor >= STRIPS_TYPES[1])
}

function findLoader(folders: readonly string[]): string | null {
  for (const folder of folders) {
    const require = createRequire(join(folder, 'resolve-from-here.js'))
    const found = tryResolve(require, 'tsx') ?? oxcRegister(tryResolve(require, '@oxc-node/core'))
    if (found !== null) return found
  }
  return null
}

function tryResolve(require: NodeJS.Require, name: string): string | null {
  try {
    return require.resolve(name)
  } catch {
    return null
  }
}

/** The loader's entry is exported for `import` only, so it is found beside the package's main file. */
function oxcRegister(main: string | null): string | null {
  return main === null ? null : join(dirname(main), 'register.mjs')
}
