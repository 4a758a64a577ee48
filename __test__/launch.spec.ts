/** `syncbn launch`: environment, output, exit codes, and that nothing is left running. */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync, existsSync } from 'node:fs'
import { availableParallelism, tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { isAlive } from './distributed/ranks.ts'

const main = fileURLToPath(new URL('./cli/main.js', import.meta.resolve('syncbn')))
const fixtureFolder = fileURLToPath(new URL('./distributed', import.meta.url))

interface Ended {
  code: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

interface Job {
  pid: number
  kill(signal: NodeJS.Signals): void
  ended: Promise<Ended>
}

function syncbn(args: string[], options: { env?: Record<string, string>; cwd?: string } = {}): Job {
  const env: NodeJS.ProcessEnv = { ...process.env, ...options.env }
  for (const name of ['SYNCBN_TOKEN', 'SYNCBN_NUM_THREADS', 'NODE_OPTIONS']) if (!options.env?.[name]) delete env[name]
  const child = spawn(process.execPath, [main, ...args], { env, cwd: options.cwd ?? fixtureFolder })
  const ended: Ended = { code: null, signal: null, stdout: '', stderr: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => (ended.stdout += text))
  child.stderr.setEncoding('utf8').on('data', (text: string) => (ended.stderr += text))
  return {
    pid: child.pid as number,
    kill: (signal) => void child.kill(signal),
    ended: new Promise((resolve) => child.once('close', (code, signal) => resolve({ ...ended, code, signal }))),
  }
}

/** A folder with a script in it; the script gets the folder as its first argument. */
function withScript(
  source: string,
  name = 'script.mjs',
): { folder: string; script: string; read: (file: string) => string } {
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-launch-'))
  const script = join(folder, name)
  writeFileSync(script, source)
  return { folder, script, read: (file) => readFileSync(join(folder, file), 'utf8') }
}

async function until(condition: () => boolean, milliseconds: number): Promise<boolean> {
  const deadline = performance.now() + milliseconds
  while (!condition()) {
    if (performance.now() > deadline) return false
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  return true
}

const REPORT_ENVIRONMENT = `
  const names = ['RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT', 'SYNCBN_TOKEN',
    'SYNCBN_NUM_THREADS', 'SYNCBN_RESTART_COUNT', 'SYNCBN_LAUNCHER_FD']
  console.log(JSON.stringify({ argv: process.argv.slice(2), ...Object.fromEntries(names.map((name) => [name, process.env[name]])) }))`

/** What each rank printed, by rank. */
function reports(stdout: string): Record<string, string>[] {
  const found: Record<string, string>[] = []
  for (const [, rank, json] of stdout.matchAll(/^\[(\d+)\] (\{.*\})$/gm))
    found[Number(rank)] = JSON.parse(json as string)
  return found
}

test.serial('every rank finds its place in its environment', async (t) => {
  const { folder, script } = withScript(REPORT_ENVIRONMENT)
  const { code, stdout } = await syncbn(['launch', '--nproc-per-node', '3', script, '--name', 'x']).ended
  t.is(code, 0)
  const ranks = reports(stdout)
  t.is(ranks.length, 3)
  ranks.forEach((report, rank) => {
    t.like(report, { RANK: String(rank), LOCAL_RANK: String(rank), WORLD_SIZE: '3', LOCAL_WORLD_SIZE: '3' })
    t.like(report, {
      MASTER_ADDR: '127.0.0.1',
      MASTER_PORT: ranks[0]?.MASTER_PORT,
      SYNCBN_TOKEN: ranks[0]?.SYNCBN_TOKEN,
    })
    t.like(report, {
      SYNCBN_NUM_THREADS: String(Math.max(1, Math.floor(availableParallelism() / 3))),
      SYNCBN_RESTART_COUNT: '0',
    })
    t.deepEqual(report.argv as unknown, ['--name', 'x'])
    t.is(report.SYNCBN_LAUNCHER_FD, undefined)
  })
  t.regex(ranks[0]?.SYNCBN_TOKEN ?? '', /^[0-9a-f]{64}$/)
  rmSync(folder, { recursive: true })
})

test.serial('options in both spellings, several nodes, and the user’s own settings', async (t) => {
  const { folder, script } = withScript(REPORT_ENVIRONMENT)
  const args = [
    '--nproc_per_node=2',
    '--nnodes',
    '3',
    '--node_rank',
    '2',
    '--master-addr=example.org',
    '--master_port',
    '1234',
  ]
  const { code, stdout } = await syncbn(['launch', ...args, '--pass-local-rank', script, 'x'], {
    env: { SYNCBN_TOKEN: 'secret', SYNCBN_NUM_THREADS: '7' },
  }).ended
  t.is(code, 0)
  reports(stdout).forEach((report, rank) => {
    t.like(report, { RANK: String(rank), LOCAL_RANK: String(rank - 4), WORLD_SIZE: '6', LOCAL_WORLD_SIZE: '2' })
    t.like(report, { MASTER_ADDR: 'example.org', MASTER_PORT: '1234', SYNCBN_TOKEN: 'secret', SYNCBN_NUM_THREADS: '7' })
    t.deepEqual(report.argv as unknown, [`--local-rank=${rank - 4}`, 'x'])
  })
  t.deepEqual(Object.keys(reports(stdout)), ['4', '5'])
  rmSync(folder, { recursive: true })
})

test.serial('output is copied line by line with the rank before it', async (t) => {
  const { folder, script } = withScript(`
    process.stdout.write('a'); setTimeout(() => process.stdout.write('b\\nc\\r\\n\\nno end'), 50); console.error('to stderr')`)
  const { stdout, stderr } = await syncbn(['launch', script]).ended
  t.is(stdout, '[0] ab\n[0] c\n[0] \n[0] no end\n')
  t.is(stderr, '[0] to stderr\n')
  rmSync(folder, { recursive: true })
})

/** Starts a grandchild, writes both process ids, then does what the rank's mode says. */
const WITH_GRANDCHILD = `
  import { spawn } from 'node:child_process'
  import { writeFileSync } from 'node:fs'
  const [folder, mode] = process.argv.slice(2)
  const rank = process.env.RANK
  const grandchild = spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'])
  writeFileSync(folder + '/pids.' + rank + '.' + process.env.SYNCBN_RESTART_COUNT, process.pid + ' ' + grandchild.pid)
  if (mode === 'block') for (;;) ;
  if (mode === 'stubborn') process.on('SIGTERM', () => {})
  if (mode === 'fail' && rank === '1') setTimeout(() => { console.error('the reason'); process.exit(7) }, 300)
  if (mode === 'killed' && rank === '1') setTimeout(() => process.kill(process.pid, 'SIGKILL'), 300)
  setInterval(() => {}, 1000)`

/** The ranks' and grandchildren's process ids, once all are there. */
async function pidsOf(folder: string, ranks: number): Promise<number[]> {
  const files = Array.from({ length: ranks }, (_, rank) => join(folder, `pids.${rank}.0`))
  await until(() => files.every((file) => existsSync(file) && readFileSync(file, 'utf8').includes(' ')), 10_000)
  return files.flatMap((file) => readFileSync(file, 'utf8').split(' ').map(Number))
}

test.serial('the first failure stops the others, is the exit code and is shown last', async (t) => {
  const { folder, script } = withScript(WITH_GRANDCHILD)
  const { code, stderr } = await syncbn(['launch', '--nproc-per-node', '3', script, folder, 'fail']).ended
  t.is(code, 7)
  t.regex(stderr, /\[1\] the reason\n[^]*rank 1 failed first \(exit code 7\); it said:\n {2}the reason\n$/)
  t.deepEqual((await pidsOf(folder, 3)).filter(isAlive), [])
  rmSync(folder, { recursive: true })
})

test.serial('a rank that a signal ended counts as 128 and the signal', async (t) => {
  const { folder, script } = withScript(WITH_GRANDCHILD)
  const { code, stderr } = await syncbn(['launch', '--nproc-per-node', '2', script, folder, 'killed']).ended
  t.is(code, 137)
  t.regex(stderr, /rank 1 failed first \(SIGKILL\)/)
  t.deepEqual((await pidsOf(folder, 2)).filter(isAlive), [])
  rmSync(folder, { recursive: true })
})

for (const [signal, code] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
] as const) {
  test.serial(`${signal} leaves no process, not even grandchildren`, async (t) => {
    const { folder, script } = withScript(WITH_GRANDCHILD)
    const job = syncbn(['launch', '--nproc-per-node', '2', script, folder, 'block'])
    const pids = await pidsOf(folder, 2)
    t.true(pids.length === 4 && pids.every(isAlive))
    job.kill(signal)
    t.is((await job.ended).code, code)
    t.deepEqual(pids.filter(isAlive), [])
    rmSync(folder, { recursive: true })
  })
}

test.serial('a rank that ignores SIGTERM is killed after the grace period', async (t) => {
  const { folder, script } = withScript(WITH_GRANDCHILD)
  const job = syncbn(['launch', '--grace-period', '0.5', script, folder, 'stubborn'])
  const pids = await pidsOf(folder, 1)
  const start = performance.now()
  job.kill('SIGTERM')
  t.is((await job.ended).code, 143)
  const took = performance.now() - start
  t.true(took >= 450 && took < 5000, `${took} ms`)
  t.deepEqual(pids.filter(isAlive), [])
  rmSync(folder, { recursive: true })
})

test.serial('a second signal does not wait for the grace period', async (t) => {
  const { folder, script } = withScript(WITH_GRANDCHILD)
  const job = syncbn(['launch', '--grace-period', '60', script, folder, 'stubborn'])
  const pids = await pidsOf(folder, 1)
  job.kill('SIGINT')
  await new Promise((resolve) => setTimeout(resolve, 300))
  job.kill('SIGINT')
  t.is((await job.ended).code, 130)
  t.deepEqual(pids.filter(isAlive), [])
  rmSync(folder, { recursive: true })
})

test.serial('a launcher that is killed takes its ranks along, even blocked ones', async (t) => {
  const { folder, script } = withScript(WITH_GRANDCHILD)
  const job = syncbn(['launch', '--nproc-per-node', '2', script, folder, 'block'])
  const pids = await pidsOf(folder, 2)
  job.kill('SIGKILL')
  t.is((await job.ended).signal, 'SIGKILL')
  t.true(await until(() => !pids.some(isAlive), 5000), `${pids.filter(isAlive)} are left`)
  rmSync(folder, { recursive: true })
})

test.serial('all ranks are started again after a failure, as often as was asked', async (t) => {
  const { folder, script } = withScript(`
    if (process.env.SYNCBN_RESTART_COUNT !== '2' && process.env.RANK === '0') process.exit(3)
    if (process.env.SYNCBN_RESTART_COUNT !== '2') setInterval(() => {}, 1000)
    else console.log('done')`)
  const good = await syncbn(['launch', '--nproc-per-node', '2', '--max-restarts', '2', script]).ended
  t.is(good.code, 0, good.stderr)
  t.is(good.stdout.split('\n').sort().join(' ').trim(), '[0] done [1] done')
  t.is((await syncbn(['launch', '--nproc-per-node', '2', '--max-restarts', '1', script]).ended).code, 3)
  rmSync(folder, { recursive: true })
})

test.serial('TypeScript runs, or the error names what is missing', async (t) => {
  const source = `const greeting: string = 'typed'\nconsole.log(greeting)\n`
  const { folder, script } = withScript(source, 'script.ts')
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  // From this folder, @oxc-node/core of the repository is found.
  const found = await syncbn(['launch', script]).ended
  t.is(found.stdout, '[0] typed\n', found.stderr)
  const missing = await syncbn(['launch', script], { cwd: folder }).ended
  if (major > 22 || (major === 22 && minor >= 18)) t.is(missing.stdout, '[0] typed\n', missing.stderr)
  else {
    t.is(missing.code, 2)
    t.regex(missing.stderr, /tsx/)
    t.regex(missing.stderr, /@oxc-node\/core/)
  }
  rmSync(folder, { recursive: true })
})

test.serial('a reader that goes away ends the job', async (t) => {
  const { folder, script } = withScript(`setInterval(() => console.log('line'), 5)`)
  const child = spawn(process.execPath, [main, 'launch', script], { stdio: ['ignore', 'pipe', 'ignore'] })
  await new Promise((resolve) => child.stdout.once('data', resolve))
  child.stdout.destroy()
  const code = await new Promise((resolve) => child.once('exit', resolve))
  t.is(code, 129)
  rmSync(folder, { recursive: true })
})
