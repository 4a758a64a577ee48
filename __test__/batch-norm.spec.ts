/** Batch norm of one process against PyTorch: modules, functional pair, split; arguments. */
import test from 'ava'
import {
  ArgumentError,
  AutogradError,
  BatchNorm1d,
  BatchNorm2d,
  BatchNorm3d,
  DTypeError,
  ShapeError,
  SyncBatchNorm,
  batchNormApply,
  batchNormBackwardApply,
  batchNormBackwardReduce,
  batchNormStats,
  gatherStats,
  manualSeed,
  memory,
  mergeStats,
  randn,
  syncBatchNorm,
  syncBatchNormBackward,
  tensor,
  tidy,
  zeros,
  type MemoryFormat,
  type Tensor,
} from 'syncbn'
import * as F from 'syncbn/functional'

import { assertClose, toNumbers } from './helpers/closeness.ts'
import { loadCases } from './helpers/fixtures.ts'
import { checkEveryCase, LAYER_KINDS, tolerance, type Config } from './vectors/batch-norm.ts'

for (const kind of LAYER_KINDS) {
  test(`every case of PyTorch: ${kind}`, (t) => checkEveryCase(t, 'cpu', kind))
}

/** The elements in the order of the memory format, as callers with arrays of their own hold them. */
function inMemoryOrder(x: Tensor, format: MemoryFormat): Float32Array | Float64Array {
  const data = x.dataSync() as Float32Array
  if (format === 'contiguous') return data
  const [n, c] = x.shape as [number, number]
  const spatial = x.numel / (n * c)
  return data.map(
    (_, i) => data[(Math.floor(i / (c * spatial)) * c + (i % c)) * spatial + (Math.floor(i / c) % spatial)]!,
  )
}

test('the functional pair on arrays is the module, in place buffers included', async (t) => {
  for (const one of await loadCases<Config>('batch-norm')) {
    const { shape, training, eps, momentum, memoryFormat, trackRunningStats } = one.config
    if (momentum === null) continue
    const array = (name: string) => (one.has(name) ? (one.get(name).dataSync() as Float32Array) : null)
    const weight = array('weight')
    const bias = array('bias')
    const buffers = { runningMean: array('runningMean'), runningVar: array('runningVar') }
    for (let step = 0; step < one.config.steps; step++) {
      const wrap = (x: Tensor) => ({ data: inMemoryOrder(x, memoryFormat), shape, memoryFormat })
      const input = wrap(one.get(`input.${step}`))
      const args = { weight, bias, ...buffers, training: training || !trackRunningStats, momentum, eps }
      const { output, saved } = syncBatchNorm(input, args)
      const same = (actual: ArrayLike<number>, name: string) => {
        const expected = one.get(one.has(`${name}Float64.${step}`) ? `${name}Float64.${step}` : `${name}.${step}`)
        const ordered = tensor(
          Float64Array.from(expected.shape.length > 1 ? inMemoryOrder(expected, memoryFormat) : toNumbers(expected)),
        )
        assertClose(
          t,
          tensor(Float64Array.from(actual)),
          ordered,
          tolerance(one, name, expected),
          `${one.name} ${name}.${step}`,
        )
      }
      same(output.data as Float32Array, 'output')
      t.deepEqual([...output.shape], shape)
      const gradients = syncBatchNormBackward(wrap(one.get(`gradOutput.${step}`)), saved)
      same(gradients.gradInput.data as Float32Array, 'gradInput')
      if (weight) same(gradients.gradWeight!.data as Float32Array, 'gradWeight')
      else t.is(gradients.gradWeight, null)
      if (bias) same(gradients.gradBias!.data as Float32Array, 'gradBias')
      else t.is(gradients.gradBias, null)
      if (buffers.runningMean) same(buffers.runningMean, 'runningMean')
      if (buffers.runningVar) same(buffers.runningVar, 'runningVar')
      saved.dispose()
    }
  }
})

test.serial('the functional pair on tensors; saved statistics; disposal', (t) => {
  const input = randn([4, 3, 5], { dtype: 'float64' })
  const weight = randn([3], { dtype: 'float64' })
  const runningMean = new Float64Array(3)
  const runningVar = new Float64Array(3).fill(1)
  const before = memory().cpu!.tensors
  const { output, saved } = syncBatchNorm(input, { weight, runningMean, runningVar, momentum: 1 })
  t.is(saved.count, 20)
  tidy(() => {
    assertClose(t, tensor(Float64Array.from(saved.mean)), input.mean([0, 2]), 1e-14, 'mean')
    assertClose(t, tensor(runningMean), input.mean([0, 2]), 1e-14, 'running mean in the caller’s array')
  })
  const m2 = toNumbers(batchNormStats(input).m2)
  runningVar.forEach((variance, c) => t.true(Math.abs(variance - m2[c]! / 19) <= 1e-14, 'unbiased variance'))
  const gradOutput = randn([4, 3, 5], { dtype: 'float64' })
  const { gradInput, gradWeight, gradBias } = syncBatchNormBackward(gradOutput, saved)
  const leaf = input.clone()
  leaf.requiresGrad = true
  tidy(() => F.batchNorm(leaf, { weight, training: true }).backward(gradOutput))
  t.deepEqual(gradInput.dataSync(), leaf.grad!.dataSync())
  t.is(gradBias, null)
  t.deepEqual([...gradWeight!.shape], [3])
  saved.dispose()
  saved[Symbol.dispose]()
  t.throws(() => syncBatchNormBackward(gradOutput, saved), { instanceOf: ArgumentError, code: 'ERR_DISPOSED' })
  for (const x of [output, gradInput, gradWeight!, gradOutput, leaf.grad!, leaf]) x.dispose()
  t.is(memory().cpu!.tensors, before)
})

test('the functional pair refuses what does not fit, before any change', (t) => {
  const runningMean = Float32Array.of(5, 5)
  const runningVar = Float32Array.of(5, 5)
  const input = { data: new Float32Array(8), shape: [2, 2, 2] }
  const fails = (change: object, args: object, expected: object) => {
    t.throws(() => syncBatchNorm({ ...input, ...change }, { runningMean, runningVar, ...args }), expected as never)
  }
  fails({ shape: [2, 2] }, {}, { instanceOf: ShapeError })
  fails({ shape: [8] }, {}, { instanceOf: ShapeError })
  fails({ data: new Int32Array(8) }, {}, { instanceOf: DTypeError })
  fails({ dtype: 'float64' }, {}, { instanceOf: DTypeError })
  fails({}, { weight: new Float32Array(3) }, { instanceOf: ShapeError })
  fails({}, { weight: [1, 2] }, { instanceOf: ArgumentError })
  fails({}, { runningVar: null }, { instanceOf: ArgumentError })
  fails({}, { eps: 0 }, { instanceOf: ArgumentError })
  fails({}, { eps: NaN }, { instanceOf: ArgumentError })
  fails({ data: new Float32Array(2), shape: [1, 2] }, {}, { instanceOf: ShapeError, code: 'ERR_TOO_FEW_VALUES' })
  t.deepEqual([...runningMean, ...runningVar], [5, 5, 5, 5])
  t.throws(() => syncBatchNorm(input, { training: false }), { instanceOf: ArgumentError })
  const { saved } = syncBatchNorm(input)
  t.throws(() => syncBatchNormBackward(zeros([2, 2, 2]) as never, saved), { instanceOf: ArgumentError })
  t.throws(() => syncBatchNormBackward({ data: new Float32Array(4), shape: [2, 2] }, saved), { instanceOf: ShapeError })
  t.throws(() => syncBatchNormBackward(input, {} as never), { instanceOf: ArgumentError })
})

test('a tensor changed between forward and backward of the pair is an error', (t) => {
  const input = randn([4, 2])
  const { saved } = syncBatchNorm(input)
  input.fill_(0)
  t.throws(() => syncBatchNormBackward(randn([4, 2]), saved), {
    instanceOf: AutogradError,
    code: 'ERR_SAVED_TENSOR_MODIFIED',
  })
})

test('the split, over parts of a batch, is batch norm of the whole', (t) => {
  manualSeed(5)
  const parts = [
    randn([3, 4, 5], { dtype: 'float64' }),
    randn([1, 4, 5], { dtype: 'float64' }),
    zeros([0, 4, 5], { dtype: 'float64' }),
  ]
  const data = parts.flatMap(toNumbers)
  const whole = tensor(Float64Array.from(data), { shape: [4, 4, 5], requiresGrad: true })
  const weight = randn([4], { dtype: 'float64' })
  const bias = randn([4], { dtype: 'float64' })
  const buffers = { runningMean: zeros([4], { dtype: 'float64' }), runningVar: zeros([4], { dtype: 'float64' }) }
  const expected = F.batchNorm(whole, { weight, bias, ...buffers, training: true })
  const gradOutput = randn([4, 4, 5], { dtype: 'float64' })
  expected.backward(gradOutput)

  const stats = gatherStats(mergeStats(parts.map(batchNormStats)))
  t.is(stats.count, 20)
  const runningMean = new Float64Array(4)
  const runningVar = new Float64Array(4)
  const outputs = parts.map((part, i) =>
    batchNormApply(part, stats, { weight, bias, ...(i === 0 ? { runningMean, runningVar } : {}) }),
  )
  const all = (list: Tensor[]) => tensor(Float64Array.from(list.flatMap(toNumbers)), { shape: [4, 4, 5] })
  assertClose(t, all(outputs), expected, 1e-14, 'output')
  assertClose(t, tensor(runningVar), buffers.runningVar, 1e-14, 'running variance')

  const rows = [0, 60, 80, 80]
  const upstream = toNumbers(gradOutput)
  const gradients = parts.map((part, i) =>
    tensor(Float64Array.from(upstream.slice(rows[i]!, rows[i + 1]!)), { shape: part.shape }),
  )
  const sums = parts.map((part, i) => batchNormBackwardReduce(gradients[i]!, part, stats, 1e-5))
  const total = { sumDy: new Float64Array(4), sumDyXmu: new Float64Array(4) }
  for (const { sumDy, sumDyXmu } of sums)
    for (let c = 0; c < 4; c++) {
      total.sumDy[c]! += sumDy[c]!
      total.sumDyXmu[c]! += sumDyXmu[c]!
    }
  const results = parts.map((part, i) => batchNormBackwardApply(gradients[i]!, part, stats, total, { weight }))
  assertClose(t, all(results), whole.grad!, 1e-13, 'gradInput')
  const asArray = (x: Tensor) => ({ data: x.dataSync(), shape: x.shape })
  const fromArrays = batchNormBackwardApply(asArray(gradients[0]!), asArray(parts[0]!), stats, total, {
    weight: weight.dataSync(),
  })
  t.deepEqual(fromArrays.data, results[0]!.dataSync())
  t.throws(() => batchNormBackwardApply(gradients[0]!, asArray(parts[0]!) as never, stats, total), {
    instanceOf: ArgumentError,
  })
  t.throws(() => mergeStats([]), { instanceOf: ArgumentError })
})

test('dimensions: PyTorch’s words', (t) => {
  const x3 = zeros([2, 3, 4])
  t.throws(() => new BatchNorm2d(3).call(x3), { instanceOf: ShapeError, message: 'expected 4D input (got 3D input)' })
  t.throws(() => new BatchNorm3d(3).call(x3), { instanceOf: ShapeError, message: 'expected 5D input (got 3D input)' })
  t.throws(() => new BatchNorm1d(3).call(zeros([2, 3, 4, 5])), {
    instanceOf: ShapeError,
    message: 'expected 2D or 3D input (got 4D input)',
  })
  t.throws(() => new SyncBatchNorm(3).call(zeros([3])), {
    instanceOf: ShapeError,
    message: 'expected at least 2D input (got 1D input)',
  })
  t.throws(() => new SyncBatchNorm(3).call(zeros([2, 0])), {
    message: 'SyncBatchNorm number of input channels should be non-zero',
  })
  t.throws(() => new BatchNorm1d(4).call(x3), { instanceOf: ShapeError })
})

test('a call that throws changes nothing, the batch counter included', (t) => {
  const layer = new BatchNorm1d(3)
  t.throws(() => layer.call(zeros([1, 3])), { code: 'ERR_TOO_FEW_VALUES' })
  t.throws(() => layer.call(zeros([4, 5])), { instanceOf: ShapeError })
  layer.eps = -1
  t.throws(() => layer.call(zeros([4, 3])), { instanceOf: ArgumentError, message: /eps/ })
  t.is(layer.numBatchesTracked!.item(), 0)
  t.deepEqual(toNumbers(layer.runningVar!), [1, 1, 1])
})

test('constructor arguments', (t) => {
  for (const eps of [0, -1, NaN, Infinity]) t.throws(() => new BatchNorm1d(3, { eps }), { instanceOf: ArgumentError })
  for (const momentum of [NaN, Infinity])
    t.throws(() => new BatchNorm1d(3, { momentum }), { instanceOf: ArgumentError })
  for (const features of [0, -1, 1.5, NaN]) t.throws(() => new BatchNorm1d(features), { instanceOf: ArgumentError })
  t.throws(() => new BatchNorm1d(3, { dtype: 'int32' }), { instanceOf: DTypeError })
  t.throws(() => new SyncBatchNorm(3, { processGroup: 7 as never }), { instanceOf: ArgumentError })
  const layer = new BatchNorm1d(3, { affine: false, trackRunningStats: false })
  t.deepEqual([...layer.stateDict().keys()], [])
  t.deepEqual(
    [...new BatchNorm1d(3, { bias: false }).stateDict().keys()],
    ['weight', 'running_mean', 'running_var', 'num_batches_tracked'],
  )
})

test.serial('SyncBatchNorm in training needs a process group where WORLD_SIZE is above 1', (t) => {
  const layer = new SyncBatchNorm(2)
  process.env['WORLD_SIZE'] = '2'
  t.teardown(() => delete process.env['WORLD_SIZE'])
  t.throws(() => layer.call(randn([4, 2])), { code: 'ERR_NOT_INITIALIZED', message: /initProcessGroup/ })
  t.is(layer.numBatchesTracked!.item(), 0)
  t.notThrows(() => layer.eval().call(randn([4, 2])))
  process.env['WORLD_SIZE'] = '1'
  t.notThrows(() => layer.train().call(randn([4, 2])))
})

test('resetParameters and resetRunningStats', (t) => {
  const layer = new BatchNorm1d(2)
  layer.call(randn([4, 2]))
  layer.resetParameters()
  t.deepEqual(toNumbers(layer.runningMean!), [0, 0])
  t.deepEqual(toNumbers(layer.runningVar!), [1, 1])
  t.is(layer.numBatchesTracked!.item(), 0)
  t.deepEqual(toNumbers(layer.weight!), [1, 1])
})
