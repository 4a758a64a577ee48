/** The package as it would be published: complete, and nothing more. */
import { execFileSync, spawnSync } from 'node:child_process'
import { createRequire } from 'node:module'
import { existsSync, readFileSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

const root = fileURLToPath(new URL('..', import.meta.url))

interface Package {
  name: string
  version: string
  license: string
  type: string
  engines: { node: string }
  exports: Record<string, string | Record<string, string>>
  bin: Record<string, string>
  files: string[]
  scripts: Record<string, string>
  dependencies?: Record<string, string>
  optionalDependencies?: Record<string, string>
  peerDependencies?: Record<string, string>
}

const description = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as Package

interface Packed {
  files: { path: string }[]
}

/** What `npm pack` would put into the archive. */
function packedFiles(): string[] {
  const output = execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
    cwd: root,
    encoding: 'utf8',
  })
  // Older npm prints an array, newer an object by package name.
  const packed = Object.values(JSON.parse(output) as Packed[] | Record<string, Packed>)
  return (packed[0] as Packed).files.map(({ path }) => path)
}

test('every export, and the program, is a file', (t) => {
  const targets = Object.values(description.exports).flatMap((entry) =>
    typeof entry === 'string' ? [entry] : Object.values(entry),
  )
  for (const target of [...targets, ...Object.values(description.bin)]) t.true(existsSync(join(root, target)), target)
  const program = join(root, description.bin['syncbn'] as string)
  t.true(readFileSync(program, 'utf8').startsWith('#!/usr/bin/env node\n'))
  t.true((statSync(program).mode & 0o111) !== 0, 'the program can be executed')
  t.true(spawnSync(program, ['--version'], { encoding: 'utf8' }).stdout === `${description.version}\n`)
})

test('what is exported can be imported, and nothing else', async (t) => {
  const internal = 'syncbn/dist/native.js'
  t.is(typeof ((await import('syncbn')) as object), 'object')
  t.is(typeof ((await import('syncbn/functional')) as object), 'object')
  await t.throwsAsync(async () => import(internal), { any: true, code: 'ERR_PACKAGE_PATH_NOT_EXPORTED' })
})

test('the archive has the built package, its documentation and no sources', (t) => {
  const files = packedFiles()
  for (const file of ['package.json', 'README.md', 'CHANGELOG.md', 'LICENSE', 'dist/index.js', 'dist/index.d.ts']) {
    t.true(files.includes(file), file)
  }
  t.true(
    files.some((file) => /^dist\/syncbn\..*\.node$/.test(file)),
    'the native library',
  )
  const allowed =
    /^(?:dist\/(?:.*\.js|.*\.d\.ts|binding\.cjs|syncbn\.[\w-]+\.node)|package\.json|README\.md|CHANGELOG\.md|LICENSE)$/
  t.deepEqual(
    files.filter((file) => !allowed.test(file)),
    [],
  )
  for (const file of files.filter((file) => file.endsWith('.js'))) {
    t.true(existsSync(join(root, file.replace(/^dist/, 'src').replace(/\.js$/, '.ts'))), `${file} has a source`)
  }
})

test('nothing runs at installation, and nothing else is installed', (t) => {
  const hooks = ['preinstall', 'install', 'postinstall', 'prepare', 'prepublish', 'preprepare', 'postprepare']
  t.deepEqual(
    hooks.filter((hook) => hook in description.scripts),
    [],
  )
  const { dependencies = {}, optionalDependencies = {}, peerDependencies = {} } = description
  t.deepEqual({ ...dependencies, ...optionalDependencies, ...peerDependencies }, {})
  t.false(existsSync(join(root, 'binding.gyp')), 'npm would run node-gyp')
})

test('scripts run files that exist', (t) => {
  const files = Object.values(description.scripts).flatMap((script) => script.match(/[\w./-]+\.(?:mjs|ts)\b/g) ?? [])
  t.true(files.length >= 4)
  for (const file of files) t.true(existsSync(join(root, file)), file)
})

test('one version, one licence, one range of Node', (t) => {
  const binding = createRequire(import.meta.url)('../dist/binding.cjs') as { version(): string }
  t.is(binding.version(), description.version)
  const cargo = readFileSync(join(root, 'Cargo.toml'), 'utf8')
  t.is(/^version = "(.*)"$/m.exec(cargo)?.[1], description.version)
  t.is(/^license = "(.*)"$/m.exec(cargo)?.[1], description.license)
  t.true(readFileSync(join(root, 'CHANGELOG.md'), 'utf8').includes(`## [${description.version}]`))
  t.is(description.engines.node, '>=20.19')
  t.is(description.type, 'module')
})
