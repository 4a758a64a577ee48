/** Batch norm on a GPU beyond PyTorch's vectors: half types, the functional pair, the split, and late errors. */
import test from 'ava'
import {
  AutogradError,
  BatchNorm1d,
  BatchNorm2d,
  DTypeError,
  ShapeError,
  batchNormApply,
  batchNormBackwardApply,
  batchNormBackwardReduce,
  batchNormStats,
  cuda,
  grad,
  manualSeed,
  memory,
  mergeStats,
  ones,
  randn,
  syncBatchNorm,
  syncBatchNormBackward,
  tensor,
  zeros,
  type MemoryFormat,
  type Tensor,
} from 'syncbn'
import * as F from 'syncbn/functional'

import { assertClose, scaleOf, toNumbers } from '../helpers/closeness.ts'
import { DEVICE, deviceError, onCuda } from './support.ts'

/** Half a unit in the last place, relative: what writing the result costs. */
const HALF_ROUNDING = { float16: 2 ** -11, bfloat16: 2 ** -8 } as const
const FORMATS: readonly MemoryFormat[] = ['contiguous', 'channelsLast']

/** The same numbers as a float64 leaf on the CPU. */
function reference(x: Tensor): Tensor {
  const wide = x.to({ device: 'cpu', dtype: 'float64' }).detach()
  wide.requiresGrad = true
  return wide
}

onCuda('batch norm on a GPU', () => {
  for (const dtype of ['float16', 'bfloat16'] as const) {
    test(`${dtype}: forward, backward and running statistics are those of float64 on the same numbers`, (t) => {
      manualSeed(9)
      for (const memoryFormat of FORMATS) {
        for (const parameterType of ['float32', dtype] as const) {
          for (const shape of [
            [4, 5, 3, 7],
            [2, 8, 16, 16],
            [3, 1, 1, 1],
          ]) {
            const make = (...sizes: number[]) => randn(sizes).mul(2).add(5)
            const input = make(...shape).to({ device: DEVICE, dtype, memoryFormat })
            const leaves = [input, ...[1, 2].map(() => make(shape[1]!).to({ device: DEVICE, dtype: parameterType }))]
            for (const leaf of leaves) leaf.requiresGrad = true
            const wide = leaves.map(reference)
            const run = ([x, weight, bias]: Tensor[], running: Tensor[]) =>
              F.batchNorm(x!, {
                weight: weight!, bias: bias!, runningMean: running[0]!, runningVar: running[1]!, training: true, momentum: 1,
              }) // prettier-ignore
            const running = [0, 1].map(() => zeros([shape[1]!], { device: DEVICE }))
            const expectedRunning = [0, 1].map(() => zeros([shape[1]!], { dtype: 'float64' }))
            const [actual, expected] = [run(leaves, running), run(wide, expectedRunning)]
            t.is(actual.dtype, dtype)
            t.is(actual.memoryFormat, memoryFormat)
            const what = `${dtype} ${memoryFormat} ${parameterType} [${shape.join(', ')}]`
            const close = (got: Tensor, wanted: Tensor, rounding: number, name: string) =>
              assertClose(t, got, wanted, 2 * rounding * Math.max(1, scaleOf(wanted)), `${what} ${name}`)
            close(actual, expected, HALF_ROUNDING[dtype], 'output')
            const upstream = randn(shape).to({ device: DEVICE, dtype, memoryFormat })
            const got = grad(actual, leaves, { gradOutputs: [upstream] })
            const wanted = grad(expected, wide, { gradOutputs: [reference(upstream).detach()] })
            const roundings = [dtype, parameterType, parameterType].map(
              (type) => HALF_ROUNDING[type as 'float16'] ?? 2 ** -18,
            )
            wanted.forEach((gradient, i) => close(got[i]!, gradient, roundings[i]!, `gradient ${i}`))
            running.forEach((row, i) => close(row, expectedRunning[i]!, 2 ** -20, `running ${i}`))
          }
        }
      }
    })
  }

  test('half types in evaluation, and refused on the CPU', (t) => {
    const layer = new BatchNorm2d(3, { device: DEVICE }).eval()
    const x = randn([2, 3, 2, 2]).to('float16')
    t.is(layer.call(x.to(DEVICE)).dtype, 'float16')
    t.throws(() => new BatchNorm2d(3).eval().call(x), { instanceOf: DTypeError })
  })

  test('the functional pair on tensors is that of the CPU; typed arrays go there and come back', (t) => {
    manualSeed(6)
    const input = randn([4, 3, 5], { dtype: 'float64' })
    const gradOutput = randn([4, 3, 5], { dtype: 'float64' })
    const weight = Float64Array.of(1, -2, 0.5)
    const run = (device: 'cpu') => {
      const [runningMean, runningVar] = [new Float64Array(3), new Float64Array(3).fill(1)]
      const { output, saved } = syncBatchNorm(input.to(device), { weight, runningMean, runningVar, momentum: 0.3 })
      const gradients = syncBatchNormBackward(gradOutput.to(device), saved)
      const { mean, invstd, count } = saved
      saved.dispose()
      t.throws(() => syncBatchNormBackward(gradOutput.to(device), saved), { code: 'ERR_DISPOSED' })
      return { output, ...gradients, runningMean, runningVar, mean, invstd, count }
    }
    const [expected, actual] = [run('cpu'), run(DEVICE as 'cpu')]
    t.is(actual.count, 20)
    t.is(actual.gradBias, null)
    for (const key of ['output', 'gradInput', 'gradWeight'] as const) {
      t.is(actual[key]!.device, DEVICE)
      assertClose(t, actual[key], expected[key]!, 1e-13, key)
    }
    for (const key of ['runningMean', 'runningVar', 'mean', 'invstd'] as const) {
      assertClose(t, tensor(Float64Array.from(actual[key])), tensor(Float64Array.from(expected[key])), 1e-13, key)
    }
  })

  test.serial('the functional pair gives everything back', (t) => {
    const input = randn([4, 3], { device: DEVICE })
    const weight = Float32Array.of(1, 2, 3)
    const run = (): void => {
      const { output, saved } = syncBatchNorm(input, { weight })
      const gradients = syncBatchNormBackward(input, saved)
      for (const x of [output, gradients.gradInput, gradients.gradWeight!]) x.dispose()
      saved.dispose()
    }
    run() // makes what the device keeps for good
    const before = memory()[DEVICE]!.tensors
    run()
    t.is(memory()[DEVICE]!.tensors, before)
  })

  test('a tensor changed between forward and backward of the pair is an error', (t) => {
    const input = randn([4, 2], { device: DEVICE })
    const { saved } = syncBatchNorm(input)
    input.fill_(0)
    t.throws(() => syncBatchNormBackward(input, saved), {
      instanceOf: AutogradError,
      code: 'ERR_SAVED_TENSOR_MODIFIED',
    })
  })

  test('the split, with parts of a batch on the CPU and on a GPU, is batch norm of the whole', (t) => {
    manualSeed(8)
    const whole = randn([5, 4, 3], { dtype: 'float64', requiresGrad: true })
    const values = toNumbers(whole)
    const part = (from: number, to: number, device: 'cpu', source = values) =>
      tensor(Float64Array.from(source.slice(from * 12, to * 12)), { shape: [to - from, 4, 3], device })
    const rows = [[0, 2, 'cpu'], [2, 5, DEVICE]] as [number, number, 'cpu'][] // prettier-ignore
    const weight = randn([4], { dtype: 'float64' })
    const expected = F.batchNorm(whole, { weight, training: true })
    const upstream = randn([5, 4, 3], { dtype: 'float64' })
    expected.backward(upstream)
    const parts = rows.map(([from, to, device]) => part(from, to, device))
    const gradients = rows.map(([from, to, device]) => part(from, to, device, toNumbers(upstream)))
    const stats = mergeStats(parts.map(batchNormStats))
    const [mine, theirs] = parts.map((x, i) => batchNormBackwardReduce(gradients[i]!, x, stats, 1e-5))
    const sums = {
      sumDy: mine!.sumDy.map((value, c) => value + theirs!.sumDy[c]!),
      sumDyXmu: mine!.sumDyXmu.map((value, c) => value + theirs!.sumDyXmu[c]!),
    }
    const runningVar = new Float64Array(4)
    const running = { runningMean: new Float64Array(4), runningVar, momentum: 1 }
    rows.forEach(([from, to, device], i) => {
      const own = { weight: weight.to(device) }
      const output = batchNormApply(parts[i]!, stats, { ...own, ...running })
      const gradient = batchNormBackwardApply(gradients[i]!, parts[i]!, stats, sums, { weight: weight.dataSync() })
      t.is(output.device, device)
      assertClose(t, output, part(from, to, 'cpu', toNumbers(expected)), 1e-13, `output on ${device}`)
      assertClose(t, gradient, part(from, to, 'cpu', toNumbers(whole.grad!)), 1e-13, `gradient on ${device}`)
    })
    stats.m2.forEach((m2, c) => t.true(Math.abs(runningVar[c]! - m2 / 14) <= 1e-13, 'unbiased variance'))
  })

  test.serial(
    'one value per channel is an error at the next wait; nothing was updated, and the layer works on',
    async (t) => {
      const layer = new BatchNorm1d(3, { device: DEVICE })
      const error = await deviceError(t, () => layer.call(ones([1, 3], { device: DEVICE })))
      t.true(error instanceof ShapeError, error.message)
      t.is(error.code, 'ERR_TOO_FEW_VALUES')
      await t.notThrowsAsync(cuda.synchronize(DEVICE))
      t.is(layer.numBatchesTracked!.item(), 0)
      t.deepEqual(toNumbers(layer.runningVar!), [1, 1, 1])
      layer.call(randn([4, 3], { device: DEVICE }))
      t.is(layer.numBatchesTracked!.item(), 1)
      const arrays = [Float32Array.of(5, 5, 5), Float32Array.of(6, 6, 6)] as const
      const again = await deviceError(t, () =>
        syncBatchNorm(ones([1, 3], { device: DEVICE }), { runningMean: arrays[0], runningVar: arrays[1] }),
      )
      t.is(again.code, 'ERR_TOO_FEW_VALUES')
      t.deepEqual(arrays.map((array) => [...array]), [[5, 5, 5], [6, 6, 6]]) // prettier-ignore
    },
  )

  test('operands that do not fit are refused at once', (t) => {
    const layer = new BatchNorm1d(3, { device: DEVICE })
    t.throws(() => layer.call(ones([4, 5], { device: DEVICE })), { instanceOf: ShapeError })
    t.throws(() => F.batchNorm(ones([4, 3], { device: DEVICE }), { training: true, weight: ones([3]) }), {
      code: 'ERR_DEVICE',
    })
    t.throws(() => F.batchNorm(ones([4, 3], { device: DEVICE, dtype: 'int32' }), { training: true }), {
      instanceOf: DTypeError,
    })
    t.is(layer.numBatchesTracked!.item(), 0)
  })
})
