/** Every operation on a GPU against the CPU, forward and backward, on sizes that fill no block, vector or warp. */
import test, { type ExecutionContext } from 'ava'
import { arange, cuda, grad, manualSeed, randn, tensor, type DType, type MemoryFormat, type Tensor } from 'syncbn'
import * as F from 'syncbn/functional'

import { native } from '../../dist/native.js'
import { largestDifference, scaleOf } from '../helpers/closeness.ts'
import { DEVICE, deviceError, onCuda } from './support.ts'

/** The sums of both devices round in orders of their own: this many half units of the largest value. */
const TOLERANCE: Partial<Record<DType, number>> = { float32: 64 * 2 ** -24, float64: 64 * 2 ** -53 }

interface Sizes {
  batch: number
  channels: number
  height: number
  width: number
}

/** Odd ones, one of everything, and some above a block of 256 threads. */
const SIZES: readonly Sizes[] = [
  { batch: 3, channels: 5, height: 7, width: 6 },
  { batch: 1, channels: 1, height: 4, width: 4 },
  { batch: 2, channels: 33, height: 9, width: 13 },
  { batch: 5, channels: 4, height: 16, width: 32 },
]

type Make = (...shape: number[]) => Tensor
type Operation = (make: Make, sizes: Sizes, format: MemoryFormat) => [fn: (...x: Tensor[]) => Tensor, inputs: Tensor[]]

const OPERATIONS: Record<string, Operation> = {
  'add, sub, mul, div': (make, { channels, width }) => [
    (a, b) => a.add(b).mul(a).sub(b.mul(0.5)).div(b.mul(b).add(1)),
    [make(channels, width), make(1, width)],
  ],
  relu: (make, { batch, channels }) => [(x) => F.relu(x), [make(batch, channels)]],
  'sum and mean': (make, { batch, channels, width }) => [
    (x) =>
      x
        .sum([0])
        .mul(x.mean([0, 2]).reshape([-1, 1]))
        .mean(),
    [make(batch, channels, width)],
  ],
  'matmul of batches': (make, { batch, channels, height, width }) => [
    (a, b) => a.matmul(b),
    [make(batch, channels, height), make(height, width)],
  ],
  linear: (make, { batch, channels, width }) => [
    (x, w, b) => F.linear(x, w, b),
    [make(batch, channels), make(width, channels), make(width)],
  ],
  conv2d: (make, { batch, channels, height, width }, memoryFormat) => [
    (x, w, b) => F.conv2d(x.to({ memoryFormat }), w, b, { padding: 1, stride: [2, 1] }),
    [make(batch, channels, height, width), make(6, channels, 3, 3), make(6)],
  ],
  'conv2d in groups': (make, { batch, height, width }, memoryFormat) => [
    (x, w) => F.conv2d(x.to({ memoryFormat }), w, null, { groups: 2 }),
    [make(batch, 4, height, width), make(6, 2, 3, 2)],
  ],
  maxPool2d: (make, { batch, channels, height, width }, memoryFormat) => [
    (x) => F.maxPool2d(x.to({ memoryFormat }), 3, { stride: 2, padding: 1 }),
    [make(batch, channels, height, width)],
  ],
  avgPool2d: (make, { batch, channels, height, width }, memoryFormat) => [
    (x) => F.avgPool2d(x.to({ memoryFormat }), 2, { stride: 1 }),
    [make(batch, channels, height, width)],
  ],
  adaptiveAvgPool2d: (make, { batch, channels, height, width }, memoryFormat) => [
    (x) => F.adaptiveAvgPool2d(x.to({ memoryFormat }), [3, 2]),
    [make(batch, channels, height, width)],
  ],
  'softmax along the middle': (make, { batch, channels, width }) => [
    (x) => F.softmax(x, 1),
    [make(batch, channels, width)],
  ],
  logSoftmax: (make, { batch, channels }) => [(x) => F.logSoftmax(x, -1), [make(batch, channels)]],
  mseLoss: (make, { batch, channels }) => [(a, b) => F.mseLoss(a, b), [make(batch, channels), make(batch, channels)]],
  'batchNorm, training': (make, { batch, channels, height, width }, memoryFormat) => [
    (x, weight, bias) => F.batchNorm(x.to({ memoryFormat }), { weight, bias, training: true }),
    [make(batch, channels, height, width), make(channels), make(channels)],
  ],
  'to another format and back': (make, { batch, channels, height, width }) => [
    (x) => x.to({ memoryFormat: 'channelsLast' }).mul(2).to({ memoryFormat: 'contiguous' }).reshape([-1]),
    [make(batch, channels, height, width)],
  ],
}

function assertAlike(t: ExecutionContext, actual: Tensor, expected: Tensor, dtype: DType, what: string): void {
  t.is(actual.device, DEVICE, what)
  t.is(actual.memoryFormat, expected.memoryFormat, what)
  t.deepEqual([...actual.shape], [...expected.shape], what)
  const difference = largestDifference(actual, expected)
  const allowed = TOLERANCE[dtype]! * Math.max(1, scaleOf(expected))
  if (!(difference <= allowed)) t.fail(`${what}: differs by ${difference}, allowed ${allowed}`)
}

function compare(t: ExecutionContext, name: string, sizes: Sizes, dtype: DType, format: MemoryFormat): void {
  manualSeed(17)
  const [fn, here] = OPERATIONS[name]!((...shape) => randn(shape, { dtype, requiresGrad: true }), sizes, format)
  const there = here.map((x) => {
    const moved = x.detach().to(DEVICE)
    moved.requiresGrad = true
    return moved
  })
  const what = `${name} ${dtype} ${format} ${Object.values(sizes).join('×')}`
  const [expected, actual] = [fn(...here), fn(...there)]
  assertAlike(t, actual, expected, dtype, what)
  const upstream = randn(expected.shape, { dtype }).to({ memoryFormat: expected.memoryFormat })
  const wanted = grad(expected, here, { gradOutputs: [upstream] })
  const got = grad(actual, there, { gradOutputs: [upstream.to(DEVICE)] })
  wanted.forEach((gradient, i) => assertAlike(t, got[i]!, gradient, dtype, `${what}, gradient ${i}`))
}

onCuda('operations against the CPU', () => {
  for (const name of Object.keys(OPERATIONS)) {
    test(`${name} is that of the CPU, forward and backward`, (t) => {
      for (const sizes of SIZES) {
        for (const dtype of ['float32', 'float64'] as const) {
          for (const format of ['contiguous', 'channelsLast'] as const) compare(t, name, sizes, dtype, format)
        }
      }
    })
  }

  test('argmax, crossEntropy and empty tensors', (t) => {
    manualSeed(1)
    const logits = randn([37, 11])
    const targets = arange(37).to('float32').mul(0).to('int64')
    t.deepEqual(logits.to(DEVICE).argmax(1).dataSync(), logits.argmax(1).dataSync())
    for (const reduction of ['mean', 'sum', 'none'] as const) {
      const expected = F.crossEntropy(logits, targets, { reduction })
      assertAlike(
        t,
        F.crossEntropy(logits.to(DEVICE), targets.to(DEVICE), { reduction }),
        expected,
        'float32',
        reduction,
      )
    }
    const empty = randn([0, 3], { device: DEVICE })
    t.deepEqual([...empty.add(empty).mul(2).sum([0]).shape], [3])
    t.is(empty.sum().item(), 0)
  })

  test('half types compute elementwise on a GPU', (t) => {
    for (const dtype of ['float16', 'bfloat16'] as const) {
      const x = tensor([1, -2, 3.5], { device: DEVICE }).to(dtype)
      t.deepEqual([...(F.relu(x.add(x).mul(0.5)).dataSync() as Float32Array)], [1, 0, 3.5], dtype)
    }
  })

  test('a target out of range is an error at the next wait, once', async (t) => {
    const logits = randn([2, 3], { device: DEVICE })
    const error = await deviceError(t, () => F.crossEntropy(logits, tensor([0n, 3n], { device: DEVICE })).item())
    t.is(error.code, 'ERR_ARGUMENT', error.message)
    t.regex(error.message, /target/)
    await t.notThrowsAsync(cuda.synchronize(DEVICE))
    t.true(Number.isFinite(F.crossEntropy(logits, tensor([0n, 2n], { device: DEVICE })).item()))
  })

  test.serial(
    'nothing silently falls back: a step launches kernels and copies nothing to or from the host',
    async (t) => {
      const x = randn([4, 3, 8, 8], { device: DEVICE })
      const weight = randn([5, 3, 3, 3], { device: DEVICE, requiresGrad: true })
      const scale = randn([5], { device: DEVICE, requiresGrad: true })
      await cuda.synchronize(DEVICE)
      const before = native.cudaCounts(DEVICE)
      const hidden = F.relu(F.batchNorm(F.conv2d(x, weight), { weight: scale, training: true }))
      F.adaptiveAvgPool2d(hidden, 1).reshape([4, 5]).sum().backward()
      const after = native.cudaCounts(DEVICE)
      t.true(after.launches - before.launches >= 8, `${after.launches - before.launches} launches`)
      t.deepEqual(
        [after.hostWaits, after.uploads, after.downloads],
        [before.hostWaits, before.uploads, before.downloads],
        'waits, uploads, downloads',
      )
      for (const result of [hidden, weight.grad!, scale.grad!]) t.is(result.device, DEVICE)
    },
  )
})
