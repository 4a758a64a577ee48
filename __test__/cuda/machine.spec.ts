/** Machines without a driver, with an old one, without NCCL, with little memory. */
import test from 'ava'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import { runRanks, type SeenError } from '../distributed/ranks.ts'
import { fakesTest, onCuda } from './support.ts'

type Environment = Record<string, string | undefined>

/** Runs a scenario on one rank of this machine, changed by `env`. */
async function onMachine<T>(scenario: string, env: Environment): Promise<T> {
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-machine-'))
  try {
    const place = { TEST_FILE: join(folder, 'store') }
    const [outcome] = await runRanks<T>(`cuda/machine.${scenario}`, 1, { env: () => ({ ...place, ...env }) })
    return outcome!.value as T
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}

interface Unavailable {
  available: boolean
  count: number
  errors: Record<string, SeenError>
  untouched: boolean
  sum: number
  backend: string
}

/** Machines on which no GPU can be used, and what the errors say of the reason. */
const MACHINES: Record<string, [env: Environment, reason: RegExp]> = {
  'no driver': [{ LD_LIBRARY_PATH: undefined }, /libcuda|driver/i],
  'a driver that is too old': [{ FAKE_CUDA_DRIVER_VERSION: '11020' }, /11\.2/],
  'a driver without a GPU': [{ FAKE_CUDA_DEVICES: '0' }, /GPU|device/i],
}

/** Whether the loader finds a driver that is no fake: then the machine cannot play one without. */
function hasDriver(): boolean {
  const { stdout } = spawnSync('ldconfig', ['-p'], { encoding: 'utf8' })
  return stdout?.includes('libcuda.so') ?? false
}

onCuda('machines that lack something', () => {
  for (const [what, [env, reason]] of Object.entries(MACHINES)) {
    if (what === 'no driver' && hasDriver()) {
      test.skip('NOT TESTED, needs the fakes and a machine without a driver: no driver', (t) => t.fail())
      continue
    }
    fakesTest(`${what}: everything that needs a GPU says so and does nothing; the rest works`, async (t) => {
      const value = await onMachine<Unavailable>('unavailable', env)
      t.false(value.available)
      t.is(value.count, 0)
      for (const [call, error] of Object.entries(value.errors)) {
        t.like(error, { name: 'DeviceError', code: 'ERR_BACKEND_UNAVAILABLE' }, `${call}: ${error.message}`)
        t.regex(error.message, reason, call)
      }
      t.true(value.untouched)
      t.is(value.sum, 3)
      t.is(value.backend, 'tcp')
    })
  }

  fakesTest('doctor names the GPUs, NCCL, and the backend that would be used', (t) => {
    const env = { ...process.env, FAKE_CUDA_DEVICES: '2', LOCAL_WORLD_SIZE: undefined }
    const { stdout, status } = spawnSync(process.execPath, ['dist/cli/main.js', 'doctor'], { env, encoding: 'utf8' })
    t.is(status, 0, stdout)
    for (const part of [
      /cuda:0 .*Fake/,
      /cuda:1 .*Fake/,
      /NCCL .*libnccl\.so\.2/,
      /backend nccl .*yes/,
      /would use backend 'nccl'/,
    ]) {
      t.regex(stdout, part)
    }
    const without = spawnSync(process.execPath, ['dist/cli/main.js', 'doctor'], {
      env: { ...env, SYNCBN_NCCL_PATH: '/nonexistent' },
      encoding: 'utf8',
    })
    for (const part of [/\/nonexistent/, /pip install nvidia-nccl-cu1[23]/, /would use backend 'tcp'/])
      t.regex(without.stdout, part)
  })

  fakesTest('no NCCL: asked for it is an error that lists every path, else tcp', async (t) => {
    const env = { SYNCBN_NCCL_PATH: '/nonexistent/libnccl.so', TEST_DEVICE: 'cuda:0' }
    const { asked, backend } = await onMachine<{ asked: SeenError; backend: string }>('withoutNccl', env)
    t.like(asked, { name: 'DeviceError', code: 'ERR_BACKEND_UNAVAILABLE' }, asked.message)
    t.regex(asked.message, /\/nonexistent\/libnccl\.so/)
    t.is(backend, 'tcp')
  })

  fakesTest('out of memory: the error names the largest live tensors, and giving some back helps', async (t) => {
    interface OutOfMemory {
      error: SeenError
      live: number
      again: number
      tooLarge: SeenError
    }
    const value = await onMachine<OutOfMemory>('outOfMemory', { FAKE_CUDA_MEMORY: String(8 << 20) })
    t.like(value.error, { name: 'OutOfMemoryError', code: 'ERR_OUT_OF_MEMORY' }, value.error.message)
    t.regex(value.error.message, /3, 1000, 100/)
    t.regex(value.error.message, /256, 100/)
    t.true(value.live > 4 << 20)
    t.is(value.again, 1)
    t.is(value.tooLarge.code, 'ERR_OUT_OF_MEMORY')
  })
})
