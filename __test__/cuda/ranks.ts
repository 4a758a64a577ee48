/** Scenarios on ranks that compute on GPUs. */
import { cuda } from 'syncbn'

import { runRanks, valuesOf, type Outcome, type RunOptions } from '../distributed/ranks.ts'

/** How ranks exchange; null: as the library chooses. */
export type Backend = 'nccl' | 'tcp' | null

/** Each rank on a GPU of its own, or, where there are too few, on one that NCCL is told to share. */
export function onGpus(size: number, backend: Backend): (rank: number) => Record<string, string | undefined> {
  const count = cuda.deviceCount()
  return (rank) => ({
    TEST_DEVICE: `cuda:${rank % count}`,
    TEST_BACKEND: backend ?? undefined,
    ...(count < size && { NCCL_HOSTID: `rank-${rank}`, NCCL_SOCKET_IFNAME: 'lo' }),
  })
}

interface GpuOptions extends RunOptions {
  backend: Backend
}

/** `runRanks` on GPUs; `env` goes over the environment that says where. */
export function runOnGpus<T>(scenario: string, size: number, options: GpuOptions): Promise<Outcome<T>[]> {
  const place = onGpus(size, options.backend)
  return runRanks(scenario, size, { ...options, env: (rank) => ({ ...place(rank), ...options.env?.(rank) }) })
}

/** `valuesOf` on GPUs. */
export function valuesOnGpus<T>(scenario: string, size: number, options: GpuOptions): Promise<T[]> {
  const place = onGpus(size, options.backend)
  return valuesOf(scenario, size, { ...options, env: (rank) => ({ ...place(rank), ...options.env?.(rank) }) })
}
