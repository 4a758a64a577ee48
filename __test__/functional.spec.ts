/** Every operation against PyTorch, forward and backward, and against finite differences. */
import test from 'ava'
import { ArgumentError, ShapeError, manualSeed, randn, rand, tensor, type MemoryFormat, type Tensor } from 'syncbn'
import * as F from 'syncbn/functional'

import { assertClose, ROUNDING, scaleOf } from './helpers/closeness.ts'
import { gradientError } from './helpers/finite-differences.ts'
import { Case, loadCases } from './helpers/fixtures.ts'

type Pair = [number, number]
type Config = { op: string; memoryFormat: MemoryFormat; arguments: Record<string, never> }
type Run = (x: Tensor, operands: Record<string, Tensor | null>, args: Record<string, never>) => Tensor

/** Sums in another order than PyTorch's round differently: this many half units of the largest value. */
const ULPS = 32

const OPS: Record<string, Run> = {
  linear: (x, { weight, bias }) => F.linear(x, weight!, bias!),
  conv2d: (x, { weight, bias }, args) => F.conv2d(x, weight!, bias!, args),
  relu: (x) => F.relu(x),
  maxPool2d: (x, _, { kernelSize, ...options }) => F.maxPool2d(x, kernelSize as unknown as Pair, options),
  avgPool2d: (x, _, { kernelSize, ...options }) => F.avgPool2d(x, kernelSize as unknown as Pair, options),
  adaptiveAvgPool2d: (x, _, { outputSize }) => F.adaptiveAvgPool2d(x, outputSize as unknown as Pair),
  softmax: (x, _, { dim }) => F.softmax(x, dim!),
  logSoftmax: (x, _, { dim }) => F.logSoftmax(x, dim!),
  crossEntropy: (x, { target }, args) => F.crossEntropy(x, target!, args),
  mseLoss: (x, { target }, args) => F.mseLoss(x, target!, args),
  add: (x, { other }) => x.add(other!),
  sub: (x, { other }) => x.sub(other!),
  mul: (x, { other }) => x.mul(other!),
  div: (x, { other }) => x.div(other!),
  sum: (x, _, { dims }) => x.sum(dims ?? undefined),
  mean: (x, _, { dims }) => x.mean(dims ?? undefined),
  argmax: (x, _, { dim }) => x.argmax(dim!),
  matmul: (x, { other }) => x.matmul(other!),
}

function operand(one: Case<Config>, name: string): Tensor | null {
  const copy = one.copy(name)
  if (copy && copy.dtype.startsWith('float')) copy.requiresGrad = true
  return copy
}

function check(t: Parameters<typeof assertClose>[0], one: Case<Config>): void {
  const x = one.get('input').to({ memoryFormat: one.config.memoryFormat })
  x.requiresGrad = true
  const operands = Object.fromEntries(['weight', 'bias', 'target', 'other'].map((name) => [name, operand(one, name)]))
  const output = OPS[one.config.op]!(x, operands, one.config.arguments)
  const compare = (actual: Tensor | null, name: string): void => {
    const expected = one.get(one.has(`${name}Float64`) ? `${name}Float64` : name)
    const tolerance = ULPS * (ROUNDING[one.dtype] ?? 0) * scaleOf(expected)
    assertClose(t, actual, expected, tolerance, `${one.name} ${name}`)
  }
  compare(output, 'output')
  if (!one.has('gradOutput')) return
  output.backward(one.get('gradOutput'))
  for (const [name, tensor] of Object.entries({ input: x, ...operands })) {
    const result = `grad${name[0]!.toUpperCase()}${name.slice(1)}`
    if (one.has(result)) compare(tensor?.grad ?? null, result)
  }
  if (x.shape.length === 4) t.is(x.grad?.memoryFormat, x.memoryFormat, `${one.name}: format of the gradient`)
}

test('every case of PyTorch', async (t) => {
  const cases = await loadCases<Config>('ops')
  const seen = new Set<string>()
  for (const one of cases) {
    seen.add(one.config.op)
    check(t, one)
  }
  t.deepEqual([...seen].sort(), Object.keys(OPS).sort())
})

const shaped = (...shape: number[]): Tensor => randn(shape, { dtype: 'float64' })
const targets = tensor([1n, 0n, 2n])

const DIFFERENTIABLE: Record<string, [fn: (...inputs: Tensor[]) => Tensor, () => Tensor[]]> = {
  'matmul of vectors': [(a, b) => a.matmul(b), () => [shaped(3), shaped(3)]],
  'matmul, matrix and vector': [(a, b) => a.matmul(b), () => [shaped(2, 3), shaped(3)]],
  'matmul, vector and matrices': [(a, b) => a.matmul(b), () => [shaped(3), shaped(2, 3, 2)]],
  'matmul, batch broadcast': [(a, b) => a.matmul(b), () => [shaped(2, 1, 2, 3), shaped(3, 3, 2)]],
  'matmul, one matrix for all': [(a, b) => a.matmul(b), () => [shaped(2, 2, 2, 3), shaped(3, 2)]],
  'linear of a vector': [(x, w, b) => F.linear(x, w, b), () => [shaped(3), shaped(2, 3), shaped(2)]],
  'scalar arithmetic': [(x) => x.mul(3).add(1).div(7).sub(2), () => [shaped(2, 3)]],
  'a tensor used twice': [(x) => x.mul(x).add(x), () => [shaped(2, 3)]],
  'division broadcast': [(a, b) => a.div(b), () => [shaped(2, 3), rand([3], { dtype: 'float64' }).add(0.5)]],
  'reshape and mean': [(x) => x.reshape([3, -1]).mean([0]), () => [shaped(2, 3)]],
  'clone and conversion': [(x) => x.clone().to({ dtype: 'float64' }), () => [shaped(2, 3)]],
  'channels last': [(x) => x.to({ memoryFormat: 'channelsLast' }).mul(x), () => [shaped(1, 2, 2, 3)]],
  'cross entropy': [(x) => F.crossEntropy(x, targets), () => [shaped(3, 4)]],
  conv2d: [
    (x, w, b) => F.conv2d(x, w, b, { stride: 2, padding: 1 }),
    () => [shaped(2, 2, 3, 4), shaped(3, 2, 3, 3), shaped(3)],
  ],
  'batch norm, training': [
    (x, w, b) => F.batchNorm(x, { weight: w, bias: b, training: true }),
    () => [shaped(3, 2, 2), shaped(2), shaped(2)],
  ],
}

for (const [name, [fn, makeInputs]] of Object.entries(DIFFERENTIABLE)) {
  test(`gradient against central differences: ${name}`, (t) => {
    manualSeed(11)
    const error = gradientError(fn, makeInputs())
    t.true(error <= 1e-8, `${error}`)
  })
}

test('operands that do not fit are typed errors', (t) => {
  const x = randn([2, 3])
  t.throws(() => F.linear(x, randn([2, 4])), { instanceOf: ShapeError })
  t.throws(() => F.conv2d(x, randn([1, 1, 1, 1])), { instanceOf: ShapeError })
  t.throws(() => F.conv2d(randn([1, 3, 4, 4]), randn([2, 3, 3, 3]), null, { stride: 0 }), { instanceOf: ArgumentError })
  t.throws(() => F.conv2d(randn([1, 3, 4, 4]), randn([2, 3, 3, 3]), null, { stride: 'a' as never }), {
    instanceOf: ArgumentError,
  })
  t.throws(() => F.maxPool2d(randn([1, 1, 2, 2]), 3), { instanceOf: ShapeError })
  t.throws(() => F.softmax(x, 2), { instanceOf: ArgumentError })
  t.throws(() => F.mseLoss(x, randn([3, 2])), { instanceOf: ShapeError })
  t.throws(() => F.mseLoss(x, x, { reduction: 'max' as never }), { instanceOf: ArgumentError })
  t.throws(() => F.crossEntropy(x, tensor([0n, 3n])), { instanceOf: ArgumentError })
  t.throws(() => F.crossEntropy(x, tensor([0, 1])), { code: 'ERR_DTYPE' })
  t.throws(() => x.matmul(randn([2, 2])), { instanceOf: ShapeError })
  t.throws(() => x.matmul(tensor(1)), { instanceOf: ShapeError })
  t.throws(() => x.sum([2]), { instanceOf: ArgumentError })
  for (const cut of [
    () => x.sum([0.5]),
    () => x.sum(0 as never),
    () => x.argmax(0.5),
    () => F.softmax(x, 0.5),
    () => x.reshape([1.5, 4]),
  ]) {
    t.throws(cut, { instanceOf: ArgumentError }, 'a fraction is not cut off')
  }
})
