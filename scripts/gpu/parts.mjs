/**
 * The parts of a test of a GPU, in their order. A part answers with what goes into results.json. It throws a Failure where
 * the machine fails it, a Missing where the machine lacks something, and a Skipped for what fakes cannot do.
 */
import { readdirSync } from 'node:fs'
import { join } from 'node:path'

import { execute } from './execute.mjs'

/** The part failed; the message says how. */
export class Failure extends Error {}
/** The machine has not what the part needs. */
export class Missing extends Error {}
/** On fakes there is nothing to find out. */
export class Skipped extends Error {}

const AVA = join('node_modules', 'ava', 'entrypoints', 'cli.mjs')
const REPEATS = 100_000
/** Exit code of a sanitizer that found something. */
const FOUND = 86

/** Specs that start ranks, one process each. */
const RANKS = ['distributed', 'training']
const FAULTS = ['faults']
/** Several ranks on one card talk over the loopback device, each as if on a host of its own. */
const LOOPBACK = { NCCL_SOCKET_IFNAME: 'lo', NCCL_IB_DISABLE: '1' }
/** Skips that are no failure: what only fakes can be made to do, and what takes more GPUs. */
const ALLOWED_SKIP = /needs the fakes|needs \d+ GPUs/

async function must(machine, part, program, args, { seconds, env = {} }) {
  const log = join(machine.results, `${part}.log`)
  const ended = await execute(program, args, { env: { ...machine.env, ...env }, log, seconds })
  if (!ended.passed) throw new Failure(`${program} ${args.join(' ')}: ${ended.why}; see ${part}.log`)
  return ended
}

const specs = (names) => names.map((name) => join('__test__', 'cuda', `${name}.spec.js`))

function specsBut(others) {
  const names = readdirSync(join('__test__', 'cuda')).filter((name) => name.endsWith('.spec.js'))
  return names.map((name) => name.replace('.spec.js', '')).filter((name) => !others.includes(name))
}

/** Runs specs; tests that are skipped are listed, and fail the part unless they cannot run on this GPU. */
async function ava(machine, part, names, { seconds, env, matches = [] }) {
  const args = [AVA, '--tap', ...matches.flatMap((title) => ['--match', title]), ...specs(names)]
  const log = join(machine.results, `${part}.log`)
  const ended = await execute('./node', args, { env: { ...machine.env, ...env }, log, seconds })
  const lines = ended.stdout.split('\n')
  const titles = (pattern) =>
    lines.filter((line) => pattern.test(line)).map((line) => line.replace(/^(not )?ok \d+ - /, ''))
  const skipped = titles(/^ok .*# SKIP/)
  const failed = titles(/^not ok /)
  const forbidden = skipped.filter((title) => !ALLOWED_SKIP.test(title))
  const passed = titles(/^ok /).length - skipped.length
  if (!ended.passed || failed.length > 0)
    throw new Failure(`${ended.why}; failed: ${failed.join('; ')}; see ${part}.log`)
  if (forbidden.length > 0) throw new Failure(`skipped: ${forbidden.join('; ')}`)
  if (passed === 0) throw new Failure(`no test ran; see ${part}.log`)
  return { passed, skipped }
}

function requireNccl({ native }) {
  if (native?.nccl.version == null) throw new Missing(`NCCL: ${native?.nccl.error ?? 'the library cannot be loaded'}`)
}

async function load(machine) {
  await must(machine, 'load', './node', ['scripts/gpu/native-facts.mjs'], { seconds: 60 })
  const { stdout } = await must(machine, 'load', './node', ['dist/cli/main.js', 'doctor'], { seconds: 60 })
  if (!machine.native?.cuda.devices.length) throw new Failure(`no GPU: ${machine.native?.cuda.error ?? 'none shown'}`)
  return { doctor: stdout.trimEnd().split('\n') }
}

/**
 * The tests of the kernels in Rust: each ends with a line of its counts. One after the other, since they share a device;
 * those of operations with products by our kernels and by cuBLAS, for which a process decides once.
 */
async function kernels(machine) {
  if (machine.fake) throw new Skipped('the same programs run on fakes in the project’s own tests')
  const products = machine.env.SYNCBN_CUBLAS_PATH === undefined ? ['own'] : ['own', 'cublas']
  const runs = readdirSync('rust')
    .filter((name) => name !== 'repeats')
    .flatMap((name) => (name === 'ops' ? products.map((way) => [name, way]) : [[name, 'own']]))
  let passed = 0
  for (const [name, way] of runs) {
    const env = { RUST_TEST_THREADS: '1', SYNCBN_TEST_PRODUCTS: way }
    const { stdout } = await must(machine, 'kernels', join('rust', name), [], { seconds: 240, env })
    passed += Number(/^test result: ok\. (\d+) passed; 0 failed; 0 ignored/m.exec(stdout)?.[1] ?? NaN)
  }
  if (!(passed > 0)) throw new Failure('no test of the kernels ran, or some are ignored; see kernels.log')
  return { passed, products }
}

function conformance(machine) {
  const names = machine.fake ? ['operations'] : specsBut([...RANKS, ...FAULTS])
  return ava(machine, 'conformance', names, { seconds: 400 })
}

function ranks(machine) {
  requireNccl(machine)
  const few = { matches: ['nccl, 2 ranks*', 'nccl: SyncBatchNorm over 2 ranks*'] }
  return ava(machine, 'ranks', RANKS, { seconds: 500, env: LOOPBACK, ...(machine.fake && few) })
}

async function aborts(machine) {
  requireNccl(machine)
  const options = { seconds: 120, env: LOOPBACK }
  const { stdout } = await must(machine, 'abort', './node', ['scripts/gpu/shared-card.mjs'], options)
  const timed = JSON.parse(stdout.trimEnd().split('\n').at(-1))
  if (machine.fake) return timed
  return { ...timed, ...(await ava(machine, 'abort', FAULTS, { seconds: 400, env: LOOPBACK })) }
}

/** compute-sanitizer on the kernels' own tests, and on the library with every block of memory an allocation of its own. */
async function sanitizer(machine) {
  if (machine.fake) throw new Skipped('compute-sanitizer needs a GPU')
  const options = { log: join(machine.results, 'sanitizer.log'), env: machine.env, seconds: 20 }
  if (!(await execute('compute-sanitizer', ['--version'], options)).passed) throw new Missing('compute-sanitizer')
  const check = (tool, program, args, env = {}) => {
    const own = ['--tool', tool, '--error-exitcode', String(FOUND), '--target-processes', 'all']
    return must(machine, 'sanitizer', 'compute-sanitizer', [...own, program, ...args], { seconds: 240, env })
  }
  const uncached = { SYNCBN_CUDA_NO_CACHE: '1' }
  // The same for programs without the library, which read no variable but this.
  const exact = { SYNCBN_TEST_NO_CACHE: '1' }
  await check('memcheck', './node', [AVA, '--tap', '--timeout', '4m', ...specs(['operations', 'batch-norm'])], uncached)
  for (const tool of ['memcheck', 'racecheck']) {
    await check(tool, 'rust/batch_norm', ['float32', 'float16'], exact)
    await check(tool, 'rust/repeats', [], { ...exact, SYNCBN_TEST_REPEATS: '8' })
  }
  await check('racecheck', 'rust/ops', [], { RUST_TEST_THREADS: '1' })
  return { tools: ['memcheck', 'racecheck'] }
}

async function repeats(machine) {
  const count = machine.fake ? 20 : REPEATS
  const env = { SYNCBN_TEST_REPEATS: String(count) }
  await must(machine, 'repeats', 'rust/repeats', [], { seconds: 300, env })
  return { repeats: count }
}

async function bench(machine) {
  const peers = machine.torch === null ? [] : ['--peers']
  const args = ['benches/node/main.js', '--device', 'cuda', '--json', ...peers]
  const { stdout } = await must(machine, 'bench', './node', args, { seconds: 560 })
  const results = JSON.parse(stdout)
  if (!machine.fake && machine.torch === null)
    throw new Failure('no Python with torch to compare with: set SYNCBN_PYTHON')
  return results
}

/** Every part by its name. */
export const PARTS = { load, kernels, conformance, ranks, abort: aborts, sanitizer, repeats, bench }
