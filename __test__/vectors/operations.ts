/** Every operation on PyTorch's vectors, and against central differences: the bodies, for any device. */
import type { ExecutionContext } from 'ava'
import { manualSeed, rand, randn, tensor, type Device, type MemoryFormat, type Tensor } from 'syncbn'
import * as F from 'syncbn/functional'

import { assertClose, ROUNDING, scaleOf } from '../helpers/closeness.ts'
import { gradientError } from '../helpers/finite-differences.ts'
import { type Case, loadCases } from '../helpers/fixtures.ts'

type Pair = [number, number]
/** What a case says. */
export type Config = { op: string; memoryFormat: MemoryFormat; arguments: Record<string, never> }
type Run = (x: Tensor, operands: Record<string, Tensor | null>, args: Record<string, never>) => Tensor

/** Sums in another order than PyTorch's round differently: this many half units of the largest value. */
const ULPS = 32

/** How the cases call each operation. */
export const OPERATIONS: Record<string, Run> = {
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

/** Forward and backward of one case, where its tensors are. */
export function checkOperation(t: ExecutionContext, one: Case<Config>): void {
  const x = one.get('input').to({ memoryFormat: one.config.memoryFormat })
  x.requiresGrad = true
  const operands = Object.fromEntries(['weight', 'bias', 'target', 'other'].map((name) => [name, operand(one, name)]))
  const output = OPERATIONS[one.config.op]!(x, operands, one.config.arguments)
  const compare = (actual: Tensor | null, name: string): void => {
    const expected = one.get(one.has(`${name}Float64`) ? `${name}Float64` : name)
    const tolerance = ULPS * (ROUNDING[one.dtype] ?? 0) * scaleOf(expected)
    assertClose(t, actual, expected, tolerance, `${one.name} ${name}`)
  }
  compare(output, 'output')
  t.is(output.device, x.device)
  if (!one.has('gradOutput')) return
  output.backward(one.get('gradOutput'))
  for (const [name, tensor] of Object.entries({ input: x, ...operands })) {
    const result = `grad${name[0]!.toUpperCase()}${name.slice(1)}`
    if (one.has(result)) compare(tensor?.grad ?? null, result)
  }
  if (x.shape.length === 4) t.is(x.grad?.memoryFormat, x.memoryFormat, `${one.name}: format of the gradient`)
}

/** Functions to check against central differences, and their operands on a device. */
export function differentiable(device: Device): Record<string, [fn: (...inputs: Tensor[]) => Tensor, () => Tensor[]]> {
  const shaped = (...shape: number[]): Tensor => randn(shape, { dtype: 'float64', device })
  const targets = tensor([1n, 0n, 2n], { device })
  return {
    'matmul of vectors': [(a, b) => a.matmul(b), () => [shaped(3), shaped(3)]],
    'matmul, matrix and vector': [(a, b) => a.matmul(b), () => [shaped(2, 3), shaped(3)]],
    'matmul, vector and matrices': [(a, b) => a.matmul(b), () => [shaped(3), shaped(2, 3, 2)]],
    'matmul, batch broadcast': [(a, b) => a.matmul(b), () => [shaped(2, 1, 2, 3), shaped(3, 3, 2)]],
    'matmul, one matrix for all': [(a, b) => a.matmul(b), () => [shaped(2, 2, 2, 3), shaped(3, 2)]],
    'linear of a vector': [(x, w, b) => F.linear(x, w, b), () => [shaped(3), shaped(2, 3), shaped(2)]],
    'scalar arithmetic': [(x) => x.mul(3).add(1).div(7).sub(2), () => [shaped(2, 3)]],
    'a tensor used twice': [(x) => x.mul(x).add(x), () => [shaped(2, 3)]],
    'division broadcast': [(a, b) => a.div(b), () => [shaped(2, 3), rand([3], { dtype: 'float64', device }).add(0.5)]],
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
}

/** Every case of PyTorch; all operations must be among them. */
export async function checkEveryCase(t: ExecutionContext, device: Device): Promise<void> {
  const seen = new Set<string>()
  for (const one of await loadCases<Config>('ops', device)) {
    seen.add(one.config.op)
    checkOperation(t, one)
  }
  t.deepEqual([...seen].sort(), Object.keys(OPERATIONS).sort())
}

/** Gradients of one of `differentiable` against central differences. */
export function checkGradient(t: ExecutionContext, device: Device, name: string): void {
  manualSeed(11)
  const [fn, makeInputs] = differentiable(device)[name]!
  const error = gradientError(fn, makeInputs())
  t.true(error <= 1e-8, `${name}: ${error}`)
}
