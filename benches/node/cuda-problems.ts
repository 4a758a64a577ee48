/** What is measured on a GPU: the kernels' problems of the CPU, and sizes from the cache's to the memory's. */
import type { DType, MemoryFormat } from 'syncbn'

import { kernelProblems } from './problems.ts'

/** One rank's input. */
export interface CudaProblem {
  shape: readonly number[]
  memoryFormat: MemoryFormat
  dtype: DType
}

const DTYPES = ['float32', 'float16', 'bfloat16'] as const
const BYTES: Readonly<Partial<Record<DType, number>>> = { float32: 4, float16: 2, bfloat16: 2 }

/** Megabytes of a tensor of 256 channels of 28 × 28. */
const MEGABYTES = [1, 4, 16, 64, 200, 400]
const PLANE = [256, 28, 28] as const

/** For a device that is none: that everything runs, not how fast. */
const TINY: readonly CudaProblem[] = [
  { shape: [2, 8, 5, 6], memoryFormat: 'contiguous', dtype: 'float16' },
  { shape: [2, 8, 5, 6], memoryFormat: 'channelsLast', dtype: 'float32' },
  { shape: [6, 16], memoryFormat: 'contiguous', dtype: 'bfloat16' },
]

function ofSize(megabytes: number, dtype: DType, memoryFormat: MemoryFormat): CudaProblem {
  const sample = PLANE.reduce((a, b) => a * b, 1) * (BYTES[dtype] as number)
  return { shape: [Math.round((megabytes * 1e6) / sample), ...PLANE], memoryFormat, dtype }
}

/** All problems, a few small ones, or tiny ones. */
export function cudaProblems(extent: 'all' | 'quick' | 'tiny'): readonly CudaProblem[] {
  if (extent === 'tiny') return TINY
  const quick = extent === 'quick'
  const layers = kernelProblems(quick).flatMap(({ shape, memoryFormat }) =>
    DTYPES.map((dtype) => ({ shape, memoryFormat, dtype })),
  )
  const sizes = MEGABYTES.filter((megabytes) => !quick || megabytes === 16).flatMap((megabytes) =>
    DTYPES.flatMap((dtype) =>
      (['contiguous', 'channelsLast'] as const).map((format) => ofSize(megabytes, dtype, format)),
    ),
  )
  return [...layers, ...sizes]
}

/** Bytes of one tensor of the problem. */
export function bytesOfTensor({ shape, dtype }: CudaProblem): number {
  return shape.reduce((product, size) => product * size, BYTES[dtype] as number)
}

export function nameOf({ shape, memoryFormat, dtype }: CudaProblem): string {
  return `(${shape.join(', ')}) ${memoryFormat} ${dtype}`
}
