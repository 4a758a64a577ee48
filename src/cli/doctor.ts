/**
 * `syncbn doctor`: what this machine offers, what would be used, and why.
 *
 * Exit code 0 when training can start, on the CPU if need be; 1 when something needed is missing.
 */
import { createServer } from 'node:net'
import { arch, availableParallelism, cpus, hostname, networkInterfaces, platform, release, totalmem } from 'node:os'

import { choice, gpuFindings, type Finding, type Gpus } from './doctor-gpu.ts'

const GIBIBYTE = 2 ** 30

/** Prints the report; returns the exit code. */
export async function doctor(): Promise<number> {
  const { finding, gpus } = await library()
  const about = gpus === null ? [UNKNOWN_GPUS] : gpuFindings(gpus, process.env)
  const findings = [...machine(), finding, tcp(), ...about, await loopback(), ...network(), ...environment()]
  const width = Math.max(...findings.map(({ name }) => name.length))
  for (const found of findings) process.stdout.write(lines(found, width))
  const missing = findings.filter(({ remedy }) => remedy !== undefined)
  const verdict = gpus === null || missing.length > 0 ? `Missing: ${names(missing)}.` : choice(gpus, process.env)
  process.stdout.write(`\n${verdict}\n`)
  return missing.length === 0 ? 0 : 1
}

/** Values in a column of their own; what to do about them below, behind an arrow. */
function lines({ name, value, remedy, advice }: Finding, width: number): string {
  const whatToDo = remedy ?? advice
  const rows = [...value.split('\n'), ...(whatToDo === undefined ? [] : [`-> ${whatToDo}`])]
  return rows.map((row, i) => `${(i === 0 ? name : '').padEnd(width)}  ${row}\n`).join('')
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

const UNKNOWN_GPUS: Finding = { name: 'GPUs', value: 'not known: it is the native library that looks for them' }

/** The native part is loaded here and not at the top, so that the report also works where it cannot be loaded. */
async function library(): Promise<{ finding: Finding; gpus: Gpus | null }> {
  const name = 'native library'
  try {
    const { native } = await import('../native.ts')
    const value = `version ${native.version()}, ${native.getNumThreads()} compute threads`
    return { finding: { name, value }, gpus: { cuda: native.cudaInfo(), nccl: native.ncclInfo() } }
  } catch (error) {
    const [reason] = String(error instanceof Error ? error.message : error).split('\n')
    const remedy = 'reinstall the package on this platform, or run `npm run build` in a checkout (needs Rust)'
    return { finding: { name, value: `cannot be loaded: ${reason}`, remedy }, gpus: null }
  }
}

function tcp(): Finding {
  return { name: 'backend tcp', value: 'yes: one or several machines; CUDA tensors go through the host' }
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
