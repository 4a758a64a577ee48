/**
 * Packs a test of a real GPU for a machine that has only its driver: one archive, target/gpu-test.tar.gz.
 *
 *   node scripts/test-gpu.mjs            packs it; on the other machine: tar xzf gpu-test.tar.gz && gpu-test/run.sh
 *   node scripts/test-gpu.mjs --fakes    packs it with the fakes, unpacks it and runs it here, as far as fakes go
 *
 * With --fakes nothing is found out about a GPU; it shows that the archive is whole and its script works.
 */
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'

import { pack, stage } from './gpu/pack.mjs'
import { main, requireRust, root, run, StepError } from './steps.mjs'

const target = join(root, 'target')
/** Bytes an archive may have: what is easily sent. */
const LARGEST = 64 * 2 ** 20

/** The folder of the fake libraries, built if they are out of date. */
function fakesFolder() {
  const args = ['run', '--quiet', '--package', 'syncbn-fake-cuda', '--', 'path']
  const { status, stdout } = spawnSync('cargo', args, {
    cwd: root,
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'inherit'],
  })
  if (status !== 0) throw new StepError('The fake GPU libraries could not be built: see the messages above.')
  return stdout.trim()
}

function requireLinux() {
  if (process.platform === 'linux' && process.arch === 'x64') return
  throw new StepError(
    `The archive is made on Linux x64, the platform it is for; this is ${process.platform} ${process.arch}.`,
  )
}

/** Runs the archive in a folder of its own, which is removed afterwards. */
async function runOnFakes(archive) {
  const folder = mkdtempSync(join(target, 'gpu-test-run-'))
  try {
    if ((await run('tar', ['xzf', archive, '-C', folder])) !== 0) throw new StepError('The archive cannot be unpacked.')
    const results = join(target, 'gpu-test-on-fakes')
    rmSync(results, { recursive: true, force: true })
    return await run(join(folder, 'gpu-test', 'run.sh'), [], { env: { ...process.env, FAKE: '1', RESULTS: results } })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

await main(async (args) => {
  const unknown = args.find((arg) => arg !== '--fakes')
  if (unknown) throw new StepError(`test-gpu.mjs does not know '${unknown}'; it takes --fakes.`)
  requireLinux()
  requireRust()
  const onFakes = args.includes('--fakes')
  if ((await run(process.execPath, ['scripts/build.mjs', '--if-needed'])) !== 0)
    throw new StepError('The build failed.')
  mkdirSync(target, { recursive: true })
  const folder = join(target, onFakes ? 'gpu-test-with-fakes/gpu-test' : 'gpu-test')
  await stage(folder, onFakes ? fakesFolder() : null)
  const archive = join(target, `gpu-test${onFakes ? '-with-fakes' : ''}.tar.gz`)
  pack(folder, archive)
  const { size } = statSync(archive)
  process.stdout.write(`${archive}: ${(size / 2 ** 20).toFixed(1)} MiB\n`)
  if (size > LARGEST) throw new StepError(`The archive is larger than ${LARGEST / 2 ** 20} MiB.`)
  return onFakes ? runOnFakes(archive) : 0
})
