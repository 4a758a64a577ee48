/** What a machine with a GPU needs to test it, in one folder: nothing has to be installed there. */
import { spawnSync } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { basename, dirname, join, relative } from 'node:path'

import { root, run, StepError, tool } from '../steps.mjs'

/** TypeScript that runs there as JavaScript. */
const SOURCES = ['__test__/cuda', '__test__/distributed', '__test__/helpers', '__test__/vectors', 'benches']
/** What only ava's watch mode needs. */
const UNUSED = new Set(['@vercel/nft'])
/** How tests start processes of their own in TypeScript; there everything is JavaScript already. */
const LOADER = '@oxc-node/core'

/** Fills `folder`; with `fakes`, the folder of the fake libraries, they are packed too. */
export async function stage(folder, fakes) {
  rmSync(folder, { recursive: true, force: true })
  mkdirSync(folder, { recursive: true })
  await transpile(folder)
  cpSync(join(root, 'dist'), join(folder, 'dist'), { recursive: true })
  cpSync(join(root, '__test__', 'fixtures'), join(folder, '__test__', 'fixtures'), { recursive: true })
  cpSync(join(root, 'benches', 'peers'), join(folder, 'benches', 'peers'), { recursive: true })
  cpSync(join(root, 'scripts', 'gpu'), join(folder, 'scripts', 'gpu'), { recursive: true })
  for (const name of ['pack.mjs', 'run.sh']) rmSync(join(folder, 'scripts', 'gpu', name))
  copyFileSync(join(root, 'scripts', 'gpu', 'run.sh'), join(folder, 'run.sh'))
  program(process.execPath, join(folder, 'node'))
  for (const path of await kernelTests()) program(path, join(folder, 'rust', basename(path).replace(/-[0-9a-f]+$/, '')))
  copyPackages(folder)
  writePackageFile(folder)
  if (fakes !== null) {
    mkdirSync(join(folder, 'fakes'))
    for (const name of readdirSync(fakes).filter((file) => /\.so(\.\d+)?$/.test(file))) {
      program(join(fakes, name), join(folder, 'fakes', name))
    }
  }
  writeFileSync(join(folder, 'NEEDS'), needs(folder))
}

/** An executable or library without what only a debugger reads. */
function program(from, to) {
  mkdirSync(dirname(to), { recursive: true })
  const { status } = spawnSync('strip', ['--strip-debug', '-o', to, from], { stdio: 'ignore' })
  if (status !== 0) copyFileSync(from, to)
  chmodSync(to, 0o755)
}

/** Compiles SOURCES into `folder`, and turns what names a `.ts` file at run time to the `.js` beside it. */
async function transpile(folder) {
  const config = join(root, 'target', 'gpu-test.tsconfig.json')
  const compilerOptions = { rootDir: root, outDir: folder, noEmit: false, noCheck: true, types: [] }
  const include = SOURCES.map((path) => `../${path}/**/*.ts`)
  writeFileSync(config, JSON.stringify({ extends: '../tsconfig.tools.json', compilerOptions, include }))
  if ((await run(tool('tsc'), ['-p', config])) !== 0) throw new StepError('The tests could not be transpiled.')
  const scripts = readdirSync(folder, { recursive: true }).filter((path) => path.endsWith('.js'))
  for (const path of scripts.map((path) => join(folder, path))) {
    const text = readFileSync(path, 'utf8')
    writeFileSync(path, text.replaceAll(/((['"`])\.{1,2}\/[^'"`\n]*)\.ts\2/g, '$1.js$2'))
  }
}

/** The test programs of crates/cuda, built. */
async function kernelTests() {
  // The whole workspace, as `cargo test` builds it: one crate alone would be built with other features, anew.
  const args = ['test', '--workspace', '--no-run', '--message-format=json-render-diagnostics']
  const { status, stdout } = spawnSync('cargo', args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  if (status !== 0) throw new StepError('The tests of the kernels could not be built: see the messages above.')
  const messages = stdout.split('\n').filter((line) => line.startsWith('{')).map((line) => JSON.parse(line)) // prettier-ignore
  const manifest = join(root, 'crates', 'cuda', 'Cargo.toml')
  const isTest = ({ executable, target, manifest_path: path }) =>
    executable && path === manifest && target.kind.includes('test')
  return messages.filter(isTest).map(({ executable }) => executable)
}

/** ava and what it needs. */
function copyPackages(folder) {
  const copied = new Set()
  const copy = (name) => {
    if (copied.has(name) || UNUSED.has(name)) return
    copied.add(name)
    const path = join('node_modules', name)
    cpSync(join(root, path), join(folder, path), { recursive: true })
    const { dependencies = {} } = JSON.parse(readFileSync(join(root, path, 'package.json'), 'utf8'))
    Object.keys(dependencies).forEach(copy)
  }
  copy('ava')
  const loader = join(folder, 'node_modules', LOADER)
  mkdirSync(loader, { recursive: true })
  writeFileSync(
    join(loader, 'package.json'),
    JSON.stringify({ name: LOADER, exports: { './register': './register.js' } }),
  )
  writeFileSync(join(loader, 'register.js'), '// Nothing to load: these tests are JavaScript.\n')
}

function writePackageFile(folder) {
  const { name, version, type, exports } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
  const ava = { files: ['__test__/**/*.spec.js'], timeout: '5m', workerThreads: false, concurrency: 1 }
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ name, version, type, exports, ava }, null, 2))
}

/** One line on each program: the oldest glibc it runs with. */
function needs(folder) {
  const rust = readdirSync(join(folder, 'rust')).map((name) => join(folder, 'rust', name))
  const addons = readdirSync(join(folder, 'dist')).filter((name) => name.endsWith('.node')) // prettier-ignore
  const programs = [join(folder, 'node'), ...addons.map((name) => join(folder, 'dist', name)), ...rust]
  return programs.map((path) => `${relative(folder, path)} needs glibc ${oldestGlibc(path)} or newer\n`).join('')
}

function oldestGlibc(path) {
  const { status, stdout } = spawnSync('objdump', ['-T', path], { encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (status !== 0) return 'of an unknown version (there was no objdump)'
  const versions = [...stdout.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(([, major, minor]) => [Number(major), Number(minor)])
  const newest = versions.reduce((a, b) => (b[0] > a[0] || (b[0] === a[0] && b[1] > a[1]) ? b : a), [0, 0])
  return newest.join('.')
}

/** Packs `folder` into `archive`. */
export function pack(folder, archive) {
  const { status, stderr } = spawnSync('tar', ['czf', archive, '-C', dirname(folder), basename(folder)], {
    encoding: 'utf8',
    env: { ...process.env, GZIP: '-9' },
  })
  if (status !== 0 || !existsSync(archive)) throw new StepError(`tar failed: ${stderr}`)
}
