/**
 * The archive that tests a real GPU, on the fakes: that it is whole, that its script runs every part, and that it tells of
 * what fails. It says nothing about a GPU.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

// @ts-expect-error a script without types
import { execute } from '../scripts/gpu/execute.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const canPack = process.platform === 'linux' && process.arch === 'x64'
const testArchive = canPack ? test.serial : test.serial.skip

interface Results {
  fake: boolean
  card: string
  nccl: string
  parts: { name: string; status: string; why?: string; details?: Record<string, unknown> }[]
}

function start(program: string, args: string[], env: NodeJS.ProcessEnv = {}): { status: number | null; text: string } {
  const options = { cwd: root, encoding: 'utf8', env: { ...process.env, ...env }, maxBuffer: 2 ** 26 } as const
  const { status, stdout, stderr } = spawnSync(program, args, options)
  return { status, text: `${stdout}${stderr}` }
}

const read = (folder: string): Results => JSON.parse(readFileSync(join(folder, 'results.json'), 'utf8')) as Results

function scratch(t: { teardown(fn: () => void): void }): string {
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-gpu-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

testArchive('the archive is small, and its script runs every part that fakes can', (t) => {
  t.timeout(600_000)
  const { status, text } = start(process.execPath, ['scripts/test-gpu.mjs', '--fakes'])
  t.is(status, 0, text)
  t.regex(text, /ON FAKES: not a GPU result[^]*no part failed/)
  const { fake, card, nccl, parts } = read(join(root, 'target', 'gpu-test-on-fakes'))
  t.true(fake && card.includes('Fake'))
  t.regex(nccl, /^\d+\.\d+\.\d+$/)
  t.deepEqual(Object.fromEntries(parts.map(({ name, status }) => [name, status])), {
    load: 'passed',
    kernels: 'skipped',
    conformance: 'passed',
    ranks: 'passed',
    abort: 'passed',
    sanitizer: 'skipped',
    repeats: 'passed',
    bench: 'passed',
  })
  const details = (part: string): Record<string, unknown> => parts.find(({ name }) => name === part)?.details ?? {}
  t.true((details('conformance')['passed'] as number) > 3)
  t.true((details('ranks')['passed'] as number) > 1)
  t.like(details('abort')['noticed'], { dieInAllReduce: { code: 'ERR_PEER_LOST' } })
  t.true((details('bench')['problems'] as unknown[]).length > 0)
})

testArchive('a part that fails is reported, and a part without a name is refused', (t) => {
  const [script, folder] = [join(root, 'target', 'gpu-test-with-fakes', 'gpu-test', 'run.sh'), scratch(t)]
  const env = { FAKE: '1', RESULTS: folder, FAKE_CUDA_DEVICES: '0' }
  const failing = start(script, ['load'], env)
  t.is(failing.status, 1, failing.text)
  t.regex(failing.text, /failed +load, [\d.]+ s: no GPU: .*\nfailed: load/)
  t.like(read(folder).parts[0], { name: 'load', status: 'failed' })
  const unknown = start(script, ['everything'], env)
  t.is(unknown.status, 2)
  t.regex(unknown.text, /the parts are load, kernels/)
})

test('a program that takes too long is killed, and its log says so', async (t) => {
  const log = join(scratch(t), 'log')
  const run = (code: string) => execute(process.execPath, ['-e', code], { env: process.env, log, seconds: 2 })
  t.like(await run('console.log(1)'), { passed: true, why: '', stdout: '1\n' })
  t.like(await run('process.exit(3)'), { passed: false, why: 'exit code 3' })
  t.like(await run('process.kill(process.pid, "SIGTERM")'), { passed: false, why: 'SIGTERM' })
  t.like(await run('setInterval(() => {}, 1000)'), { passed: false, why: 'took more than 2 s' })
  t.like(await execute('no-such-program', [], { env: process.env, log, seconds: 2 }), { passed: false })
  t.regex(readFileSync(log, 'utf8'), /passed[^]*exit code 3[^]*SIGTERM[^]*took more than 2 s[^]*ENOENT/)
})
