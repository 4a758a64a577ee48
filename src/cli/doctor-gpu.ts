/** What `syncbn doctor` says of GPUs, from what the native side found out. */
import { platform } from 'node:os'

import type { BindingCudaInfo, BindingNcclInfo } from '../binding.d.ts'

/** One line of the report. */
export interface Finding {
  name: string
  /** Lines after the first go below it. */
  value: string
  /** What to do where something needed is missing: the report ends with exit code 1. */
  remedy?: string
  /** What to do to get more than there is; nothing is wrong without it. */
  advice?: string
}

/** What the native side tells of this machine. */
export interface Gpus {
  cuda: BindingCudaInfo
  nccl: BindingNcclInfo
}

type Gpu = BindingCudaInfo['devices'][number]
type Environment = Readonly<Record<string, string | undefined>>

const GIBIBYTE = 2 ** 30

/** Variables that decide what is found and used, besides NCCL's own. */
const VARIABLES = [
  'CUDA_VISIBLE_DEVICES',
  'SYNCBN_NCCL_PATH',
  'SYNCBN_CUBLAS_PATH',
  'SYNCBN_CUDA_NO_CACHE',
  'SYNCBN_DEBUG',
  'NODE_DEBUG',
]

/** The driver, every GPU, NCCL, and the variables about them. */
export function gpuFindings({ cuda, nccl }: Gpus, environment: Environment): Finding[] {
  return [
    driver(cuda, environment),
    ...cuda.devices.map(gpu),
    library(cuda, nccl),
    backend(cuda, nccl),
    variables(environment),
  ]
}

function driver({ driver: version, error, devices }: BindingCudaInfo, environment: Environment): Finding {
  const name = 'CUDA driver'
  if (error !== null) return { name, value: withoutSubject(error), advice: driverAdvice() }
  const value = `supports CUDA up to ${version}`
  if (devices.length > 0) return { name, value }
  const visible = environment['CUDA_VISIBLE_DEVICES']
  const advice =
    visible === undefined
      ? 'if the machine has one, `nvidia-smi` says what is wrong with it; a container needs to be given it (`--gpus all`)'
      : `CUDA_VISIBLE_DEVICES=${visible} hides GPUs: change or unset it`
  return { name, value: `${value}, but shows no GPU`, advice }
}

function driverAdvice(): string {
  if (platform() !== 'linux') return 'training on GPUs needs Linux'
  return (
    'to train on NVIDIA GPUs, install or update their driver (Ubuntu: `sudo ubuntu-drivers install`, ' +
    'Debian: `sudo apt-get install nvidia-driver`, others: https://www.nvidia.com/drivers)'
  )
}

function gpu(device: Gpu, index: number): Finding {
  const { name, totalMemory, freeMemory, computeCapability, multiprocessors, peers, gemm } = device
  const memory = `${gibibytes(totalMemory)} GiB of memory (${gibibytes(freeMemory)} free)`
  const reads = peers.length === 0 ? 'of no other GPU' : `of ${peers.map((peer) => `cuda:${peer}`).join(', ')}`
  const products = gemm === 'own kernel' ? 'own kernel, since no cuBLAS was found' : gemm
  return {
    name: `cuda:${index}`,
    value: [
      `${name}, ${memory}, compute capability ${computeCapability}, ${multiprocessors} multiprocessors`,
      `reads memory ${reads} directly; matrix products: ${products}`,
    ].join('\n'),
    ...(gemm === 'own kernel' && {
      advice: 'cuBLAS multiplies faster: `pip install nvidia-cublas`, then SYNCBN_CUBLAS_PATH=<its libcublas.so.13>',
    }),
  }
}

/** An error's message without the word that says what it is about. */
const withoutSubject = (message: string): string => message.replace(/^\w+: /, '')

const gibibytes = (bytes: number): string => (bytes / GIBIBYTE).toFixed(1)

function library(cuda: BindingCudaInfo, { version, path, error }: BindingNcclInfo): Finding {
  const name = 'NCCL'
  if (error === null) return { name, value: `${version} (${path})` }
  return { name, value: withoutSubject(error), ...(cuda.devices.length > 0 && { advice: ncclAdvice(cuda) }) }
}

/** The wheel for the newest CUDA that the driver supports. */
function ncclAdvice({ driver: version }: BindingCudaInfo): string {
  const wheel = `nvidia-nccl-cu${Number.parseInt(version ?? '', 10) >= 13 ? 13 : 12}`
  return (
    `\`pip install ${wheel}\` in the active environment, or the package libnccl2 of NVIDIA's repository; a copy elsewhere ` +
    'is named by SYNCBN_NCCL_PATH=<file or folder>'
  )
}

function backend({ devices }: BindingCudaInfo, { error }: BindingNcclInfo): Finding {
  const name = 'backend nccl'
  const lacks = [devices.length === 0 ? 'a GPU' : '', error === null ? '' : 'NCCL'].filter(Boolean)
  if (lacks.length > 0) return { name, value: `no: ${lacks.join(' and ')} ${lacks.length > 1 ? 'are' : 'is'} missing` }
  return { name, value: `yes: CUDA tensors, up to ${count(devices.length, 'rank')} on this machine, one to a GPU` }
}

function variables(environment: Environment): Finding {
  const names = Object.keys(environment).filter((name) => VARIABLES.includes(name) || name.startsWith('NCCL_'))
  const set = names.sort().map((name) => `${name}=${environment[name]}`)
  return { name: 'GPU variables', value: set.length === 0 ? 'none set' : set.join(' ') }
}

/** Which backend `initProcessGroup()` would choose here by itself, on which device, and why. */
export function choice({ cuda, nccl }: Gpus, environment: Environment): string {
  const gpus = cuda.devices.length
  const uses = (backend: string, why: string): string =>
    `initProcessGroup() without options would use backend '${backend}': ${why}`
  if (gpus === 0) return uses('tcp', `${reasonWithoutGpu(cuda)}. Tensors would be on device 'cpu'.`)
  const through = "CUDA tensors would be exchanged through the host's memory, which is slower."
  if (nccl.error !== null) return uses('tcp', `there is no NCCL for ${count(gpus, 'GPU')}. ${through}`)
  const ranks = Number(environment['LOCAL_WORLD_SIZE'] ?? 1)
  if (ranks > gpus) {
    return uses(
      'tcp',
      `LOCAL_WORLD_SIZE=${ranks} ranks would share ${count(gpus, 'GPU')}, but nccl takes one each. ${through}`,
    )
  }
  const most = `the most ranks it does so for on this machine is ${gpus}, and ranks on others need GPUs and NCCL too`
  return uses('nccl', `found ${count(gpus, 'GPU')} and NCCL ${nccl.version}; ${most}; else it uses 'tcp'.`)
}

/** The first part of the driver's error, which is followed by what to do. */
function reasonWithoutGpu({ error }: BindingCudaInfo): string {
  if (error === null) return 'the driver shows no GPU'
  return withoutSubject(error).split(/[:;\n]/)[0] as string
}

const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`
