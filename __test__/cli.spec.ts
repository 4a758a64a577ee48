/** The `syncbn` program: help, version, mistakes, and the doctor. */
import { spawnSync } from 'node:child_process'
import { cpSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import test from 'ava'

import { choice, gpuFindings, type Gpus } from '../dist/cli/doctor-gpu.js'

const main = fileURLToPath(new URL('./cli/main.js', import.meta.resolve('syncbn')))
const { version } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8')) as { version: string }

function syncbn(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  return spawnSync(process.execPath, [main, ...args], { encoding: 'utf8', env: { ...process.env, SYNCBN_TOKEN: '' } })
}

test('help and version', (t) => {
  t.like(syncbn('--version'), { status: 0, stdout: `${version}\n`, stderr: '' })
  for (const args of [['--help'], ['-h']]) {
    const { status, stdout } = syncbn(...args)
    t.is(status, 0)
    t.regex(stdout, /launch[^]*doctor/)
  }
  const { status, stdout } = syncbn('launch', '--help')
  t.is(status, 0)
  for (const option of [
    'nproc-per-node',
    'nnodes',
    'node-rank',
    'master-addr',
    'master-port',
    'max-restarts',
    'pass-local-rank',
    'grace-period',
  ]) {
    t.regex(stdout, new RegExp(`--${option}`))
  }
})

const MISTAKES: [string[], RegExp][] = [
  [[], /no command/],
  [['train'], /unknown command 'train'/],
  [['doctor', 'now'], /doctor takes no arguments/],
  [['launch'], /no script/],
  [['launch', '--nproc-per-node', '2'], /no script/],
  [['launch', '--nproc-per-node', 'two', 'x.js'], /--nproc-per-node.*'two'/],
  [['launch', '--nproc-per-node', '0', 'x.js'], /--nproc-per-node.*at least 1/],
  [['launch', '--nproc-per-node'], /needs a value/],
  [['launch', '--nprocs', '2', 'x.js'], /unknown option --nprocs/],
  [['launch', '--pass-local-rank=1', 'x.js'], /takes no value/],
  [['launch', '--master-port', '70000', 'x.js'], /65535/],
  [['launch', '--grace-period', 'soon', 'x.js'], /--grace-period.*'soon'/],
  [['launch', '--node-rank', '1', 'x.js'], /--node-rank must be below --nnodes 1/],
  [['launch', '--nnodes', '2', 'x.js'], /--node-rank/],
  [['launch', '--nnodes', '2', '--node-rank', '0', 'x.js'], /--master-addr/],
  [['launch', '--nnodes', '2', '--node-rank', '0', '--master-addr', 'host', main], /SYNCBN_TOKEN/],
  [['launch', 'no-such-file.js'], /no file .*no-such-file\.js/],
  [['launch', 'package.json'], /\.js.*\.ts/],
]

for (const [args, pattern] of MISTAKES) {
  test(`a mistake is explained: syncbn ${args.join(' ').replace(main, 'script.js')}`, (t) => {
    const { status, stdout, stderr } = syncbn(...args)
    t.is(status, 2, stderr)
    t.is(stdout, '')
    t.regex(stderr, pattern)
    t.regex(stderr, /--help/)
  })
}

test('the doctor reports on the machine', (t) => {
  const { status, stdout } = syncbn('doctor')
  t.is(status, 0, stdout)
  for (const line of [
    `node +${process.versions.node}`,
    `native library +version ${version}`,
    'backend tcp +yes',
    'CUDA driver +\\S',
    'NCCL +\\S',
    'backend nccl +(yes|no: .* missing)',
    'GPU variables +\\S',
  ]) {
    t.regex(stdout, new RegExp(line))
  }
  t.regex(stdout, /\ninitProcessGroup\(\) without options would use backend '(tcp|nccl)': \w/)
})

test('the doctor says what cannot be loaded when the native library is not there', (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-doctor-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  cpSync(join(main, '..', '..'), join(folder, 'dist'), {
    recursive: true,
    filter: (path) => !path.endsWith('.node'),
  })
  cpSync(fileURLToPath(new URL('../package.json', import.meta.url)), join(folder, 'package.json'))
  const args = [join(folder, 'dist', 'cli', 'main.js'), 'doctor']
  const { status, stdout } = spawnSync(process.execPath, args, { encoding: 'utf8', cwd: folder })
  t.is(status, 1, stdout)
  t.regex(stdout, /native library +cannot be loaded: \w[^]*-> reinstall/)
  t.regex(stdout, /GPUs +not known/)
  t.regex(stdout, /loopback +127/)
  t.regex(stdout, /Missing: native library\.\n$/)
})

const H200 = {
  name: 'NVIDIA H200',
  uuid: '00',
  totalMemory: 140 * 2 ** 30,
  freeMemory: 139 * 2 ** 30,
  computeCapability: '9.0',
  multiprocessors: 132,
  peers: [1],
  gemm: 'cublas 13.1',
}
const NCCL = { version: '2.28.9', path: '/lib/libnccl.so.2', error: null }
const NO_NCCL = { version: null, path: null, error: 'nccl: NCCL was not found. Tried:\n  a.so: none\n  b.so: none' }
const TWO_GPUS: Gpus['cuda'] = {
  driver: '13.0',
  error: null,
  devices: [H200, { ...H200, peers: [0], gemm: 'own kernel' }],
}
const NO_GPU: Gpus['cuda'] = { driver: '12.4', error: null, devices: [] }
const NO_DRIVER: Gpus['cuda'] = { driver: null, error: 'cuda: the driver was not found: install it', devices: [] }

const find = (gpus: Gpus, name: string, environment = {}) =>
  gpuFindings(gpus, environment).find((finding) => finding.name === name)

test('the doctor describes GPUs and NCCL', (t) => {
  const gpus = { cuda: TWO_GPUS, nccl: NCCL }
  t.deepEqual(
    gpuFindings(gpus, {}).map(({ name }) => name),
    ['CUDA driver', 'cuda:0', 'cuda:1', 'NCCL', 'backend nccl', 'GPU variables'],
  )
  t.is(find(gpus, 'CUDA driver')?.value, 'supports CUDA up to 13.0')
  const expected = ['NVIDIA H200', '140.0 GiB', '139.0 free', '9.0', '132', 'of cuda:1 directly', 'cublas 13.1']
  for (const part of expected) t.true(find(gpus, 'cuda:0')?.value.includes(part), part)
  t.is(find(gpus, 'cuda:0')?.advice, undefined)
  t.regex(find(gpus, 'cuda:1')?.value ?? '', /own kernel, since no cuBLAS was found/)
  t.regex(find(gpus, 'cuda:1')?.advice ?? '', /pip install/)
  t.is(find(gpus, 'NCCL')?.value, '2.28.9 (/lib/libnccl.so.2)')
  t.regex(find(gpus, 'backend nccl')?.value ?? '', /^yes: .*up to 2 ranks/)
  const environment = { SYNCBN_NCCL_PATH: '/x', NCCL_DEBUG: 'INFO', CUDA_VISIBLE_DEVICES: '1', HOME: '/root' }
  t.is(find(gpus, 'GPU variables', environment)?.value, 'CUDA_VISIBLE_DEVICES=1 NCCL_DEBUG=INFO SYNCBN_NCCL_PATH=/x')
})

test('the doctor says what is missing for GPUs, and how to get it', (t) => {
  const bare = { cuda: NO_DRIVER, nccl: NO_NCCL }
  t.is(find(bare, 'CUDA driver')?.value, 'the driver was not found: install it')
  t.regex(find(bare, 'CUDA driver')?.advice ?? '', /nvidia\.com\/drivers|needs Linux/)
  t.is(find(bare, 'NCCL')?.value, 'NCCL was not found. Tried:\n  a.so: none\n  b.so: none', 'every path')
  t.is(find(bare, 'NCCL')?.advice, undefined, 'of no use without a GPU')
  t.is(find(bare, 'backend nccl')?.value, 'no: a GPU and NCCL are missing')
  const hidden = { cuda: NO_GPU, nccl: NCCL }
  t.regex(find(hidden, 'CUDA driver')?.advice ?? '', /nvidia-smi/)
  t.regex(find(hidden, 'CUDA driver', { CUDA_VISIBLE_DEVICES: '' })?.advice ?? '', /CUDA_VISIBLE_DEVICES= hides/)
  t.is(find(hidden, 'backend nccl')?.value, 'no: a GPU is missing')
  const wheel = (driver: string) => find({ cuda: { ...TWO_GPUS, driver }, nccl: NO_NCCL }, 'NCCL')?.advice ?? ''
  t.regex(wheel('13.0'), /pip install nvidia-nccl-cu13`/)
  t.regex(wheel('12.4'), /pip install nvidia-nccl-cu12`/)
  for (const gpus of [bare, hidden, { cuda: TWO_GPUS, nccl: NO_NCCL }]) {
    t.true(
      gpuFindings(gpus, {}).every(({ remedy }) => remedy === undefined),
      'the CPU is there',
    )
  }
})

const CHOICES: [what: string, Gpus, environment: Record<string, string>, conclusion: RegExp][] = [
  ['GPUs and NCCL', { cuda: TWO_GPUS, nccl: NCCL }, {}, /'nccl': found 2 GPUs and NCCL 2\.28\.9; .*is 2,/],
  ['as many ranks as GPUs', { cuda: TWO_GPUS, nccl: NCCL }, { LOCAL_WORLD_SIZE: '2' }, /'nccl'/],
  [
    'more ranks than GPUs',
    { cuda: TWO_GPUS, nccl: NCCL },
    { LOCAL_WORLD_SIZE: '3' },
    /'tcp': LOCAL_WORLD_SIZE=3 .*2 GPUs/,
  ],
  ['GPUs without NCCL', { cuda: TWO_GPUS, nccl: NO_NCCL }, {}, /'tcp': there is no NCCL for 2 GPUs\. .*host's memory/],
  ['no driver', { cuda: NO_DRIVER, nccl: NCCL }, {}, /'tcp': the driver was not found\. .*'cpu'/],
  ['no GPU', { cuda: NO_GPU, nccl: NCCL }, {}, /'tcp': the driver shows no GPU\. .*'cpu'/],
]

for (const [what, gpus, environment, conclusion] of CHOICES) {
  test(`the doctor concludes which backend is used: ${what}`, (t) => t.regex(choice(gpus, environment), conclusion))
}
