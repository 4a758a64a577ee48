/** The `syncbn` program: help, version, mistakes, and the doctor. */
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

import test from 'ava'

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
    'backend nccl +no',
  ]) {
    t.regex(stdout, new RegExp(line))
  }
  t.regex(stdout, /would use backend 'tcp'/)
})
