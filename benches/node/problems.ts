/** What is measured: layers of known networks, with the batch of 8 (or 4) that would be split over the ranks. */
import type { MemoryFormat } from 'syncbn'

/** The input of one batch norm layer. */
export interface Problem {
  network: string
  /** Of all ranks together; the ranks split the first dimension. */
  shape: readonly number[]
  memoryFormat: MemoryFormat
}

const LAYERS: readonly [string, readonly (readonly number[])[]][] = [
  [
    'ResNet-50',
    [
      [8, 64, 112, 112],
      [8, 256, 56, 56],
      [8, 512, 28, 28],
      [8, 1024, 14, 14],
      [8, 2048, 7, 7],
    ],
  ],
  [
    'U-Net',
    [
      [4, 32, 256, 256],
      [4, 128, 64, 64],
      [4, 512, 16, 16],
    ],
  ],
  [
    '(N, C)',
    [
      [256, 1024],
      [4096, 64],
    ],
  ],
]
/** One of each kind, for a look. */
const QUICK = new Set(['8,512,28,28', '4,128,64,64', '256,1024'])

/** All problems, or a few small ones. */
export function problems(quick: boolean): Problem[] {
  return LAYERS.flatMap(([network, shapes]) =>
    shapes
      .filter((shape) => !quick || QUICK.has(shape.join()))
      .flatMap((shape) =>
        (shape.length === 4 ? (['contiguous', 'channelsLast'] as const) : (['contiguous'] as const)).map(
          (memoryFormat) => ({ network, shape, memoryFormat }),
        ),
      ),
  )
}

/** What the kernels are measured on by themselves: small and large, few and many channels, both layouts. */
const KERNEL_SHAPES: readonly [readonly number[], MemoryFormat][] = [
  [[8, 64, 56, 56], 'contiguous'],
  [[32, 64, 112, 112], 'contiguous'],
  [[8, 256, 28, 28], 'channelsLast'],
  [[32, 64, 112, 112], 'channelsLast'],
  [[4, 2048, 7, 7], 'contiguous'],
  [[64, 512], 'contiguous'],
  [[2, 32, 64, 64, 64], 'contiguous'],
]

/** The kernels' problems, or the small ones. */
export function kernelProblems(quick: boolean): Problem[] {
  const all = KERNEL_SHAPES.map(([shape, memoryFormat]) => ({ network: 'kernels', shape, memoryFormat }))
  return quick ? all.filter(({ shape }) => bytesOf(shape) < 2 ** 23) : all
}

/** Bytes of a float32 tensor. */
export function bytesOf(shape: readonly number[]): number {
  return 4 * shape.reduce((product, size) => product * size, 1)
}
