/**
 * `syncbn doctor`: what this machine offers, what would be used, and why.
 *
 * Exit code 0 when training can start, 1 when something needed is missing.
 */
import { createServer } from 'node:net'
import { arch, availableParallelism, cpus, hostname, networkInterfaces, platform, release, totalmem } from 'node:os'

interface Finding {
  name: string
  value: string
  /** What to do about it; present only when something needed is missing. */
  remedy?: string
}

const GIBIBYTE = 2 ** 30

/** Prints the report; returns the exit code. */
export async function doctor(): Promise<number> {
  const findings = [...machine(), await library(), ...backends(), await loopback(), ...network(), ...environment()]
  const width = Math.max(...findings.map(({ name }) => name.length))
  for (const { name, value, remedy } of findings) {
    process.stdout.write(`${name.padEnd(width)}  ${value}\n`)
    if (remedy !== undefined) process.stdout.write(`${' '.repeat(width)}  -> ${remedy}\n`)
  }
  const missing = findings.filter(({ remedy }) => remedy !== undefined)
  process.stdout.write(`\n${missing.length === 0 ? conclusion() : `Missing: ${names(missing)}.`}\n`)
  return missing.length === 0 ? 0 : 1
}

function conclusion(): string {
  return "Training would use backend 'tcp' on device 'cpu': the only ones in this release, whatever GPUs the machine has."
}

function names(findings: readonly Finding[]): string {
  return findings.map(({ name }) => name).join(', ')
}

function machine(): Finding[] {
  const model = cpus()[0]?.model ?? 'unknown processor'
  return [
    { name: 'node', value: process.versions.node },
    { name: 'platform', value: `${platform()} ${arch()}, ${release()}` },
    { name: 'processor', value: `${model.trim()}, ${availableParallelism()} usable cores` },
    { name: 'memory', value: `${(totalmem() / GIBIBYTE).toFixed(1)} GiB` },
  ]
}

/** The native part is loaded here and not at the top, so that the report also works where it cannot be loaded. */
async function library(): Promise<Finding> {
  const name = 'native library'
  try {
    const { native } = await import('../native.ts')
    return { name, value: `version ${native.version()}, ${native.getNumThreads()} compute threads` }
  } catch (error) {
    const [reason] = String(error instanceof Error ? error.message : error).split('\n')
    const remedy = 'reinstall the package on this platform, or run `npm run build` in a checkout (needs Rust)'
    return { name, value: `cannot be loaded: ${reason}`, remedy }
  }
}

function backends(): Finding[] {
  return [
    { name: 'backend tcp', value: 'yes: CPU tensors, one or several machines' },
    { name: 'backend nccl', value: 'no: not in this release' },
  ]
}

function loopback(): Promise<Finding> {
  const name = 'loopback'
  return new Promise((resolve) => {
    const server = createServer()
    server.once('error', (error) =>
      resolve({ name, value: `cannot listen on 127.0.0.1: ${error.message}`, remedy: 'allow local TCP sockets' }),
    )
    server.listen(0, '127.0.0.1', () => server.close(() => resolve({ name, value: '127.0.0.1 can be listened on' })))
  })
}

function network(): Finding[] {
  const addresses = Object.entries(networkInterfaces()).flatMap(([device, list]) =>
    (list ?? []).filter(({ internal }) => !internal).map(({ address }) => `${address} (${device})`),
  )
  const value = addresses.length === 0 ? 'none: ranks on this machine only' : addresses.join(', ')
  return [{ name: 'addresses', value: `${hostname()}: ${value}` }]
}

function environment(): Finding[] {
  const shown = ['RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'SYNCBN_NUM_THREADS']
  const set = shown.filter((name) => process.env[name] !== undefined).map((name) => `${name}=${process.env[name]}`)
  if (process.env.SYNCBN_TOKEN) set.push('SYNCBN_TOKEN (set, not shown)')
  return [{ name: 'environment', value: set.length === 0 ? 'no rendezvous variables set' : set.join(' ') }]
}
