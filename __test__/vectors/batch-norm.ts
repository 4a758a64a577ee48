/** Batch norm modules on PyTorch's vectors: the bodies, for any device. */
import type { ExecutionContext } from 'ava'
import {
  BatchNorm1d,
  BatchNorm2d,
  BatchNorm3d,
  SyncBatchNorm,
  type BatchNormBase,
  type BatchNormOptions,
  type Device,
  type MemoryFormat,
  type Tensor,
} from 'syncbn'

import { assertClose, ROUNDING, scaleOf } from '../helpers/closeness.ts'
import { type Case, loadCases } from '../helpers/fixtures.ts'

/** What a case says. */
export interface Config {
  shape: number[]
  training: boolean
  momentum: number | null
  eps: number
  affine: boolean
  bias: boolean
  trackRunningStats: boolean
  memoryFormat: MemoryFormat
  steps: number
  plainError: Record<string, number>
  pytorchError: Record<string, number>
}

/** DESIGN's contract: at most twice the plain formula's error, or 4 units in the last place of the largest value. */
export function tolerance(one: Case<Config>, result: string, expected: Tensor): number {
  const { plainError, pytorchError } = one.config
  const stored = one.has(`${result}Float64.0`) ? 0 : (pytorchError[result] ?? 0)
  return Math.max(2 * (plainError[result] ?? 0), 8 * ROUNDING[one.dtype]! * scaleOf(expected)) + stored
}

function compare(t: ExecutionContext, one: Case<Config>, actual: Tensor | null, result: string, step: number): void {
  const wide = `${result}Float64.${step}`
  const expected = one.get(one.has(wide) ? wide : `${result}.${step}`)
  assertClose(t, actual, expected, tolerance(one, result, expected), `${one.name} ${result}.${step}`)
}

type LayerClass = new (numFeatures: number, options: BatchNormOptions) => BatchNormBase

function build(one: Case<Config>, make = classOf(one.config.shape)): BatchNormBase {
  const { shape, momentum, eps, affine, bias, trackRunningStats, training } = one.config
  const { device } = one.get('input.0')
  const dtype = one.dtype as 'float32'
  const layer = new make(shape[1]!, { momentum, eps, affine, bias, trackRunningStats, dtype, device })
  const state = new Map<string, Tensor>()
  const keys = {
    weight: 'weight',
    bias: 'bias',
    runningMean: 'running_mean',
    runningVar: 'running_var',
    numBatchesTracked: 'num_batches_tracked',
  }
  for (const [name, key] of Object.entries(keys)) if (one.has(name)) state.set(key, one.get(name))
  layer.loadStateDict(state)
  return layer.train(training)
}

function classOf(shape: number[]): LayerClass {
  return shape.length <= 3 ? BatchNorm1d : shape.length === 4 ? BatchNorm2d : BatchNorm3d
}

function runModule(t: ExecutionContext, one: Case<Config>, layer: BatchNormBase): void {
  for (let step = 0; step < one.config.steps; step++) {
    const input = one.get(`input.${step}`).to({ memoryFormat: one.config.memoryFormat })
    input.requiresGrad = true
    const output = layer.call(input)
    t.is(output.memoryFormat, input.memoryFormat)
    t.is(output.device, input.device)
    compare(t, one, output, 'output', step)
    layer.zeroGrad()
    output.backward(one.get(`gradOutput.${step}`))
    compare(t, one, input.grad, 'gradInput', step)
    if (layer.weight) compare(t, one, layer.weight.grad, 'gradWeight', step)
    if (layer.bias) compare(t, one, layer.bias.grad, 'gradBias', step)
    for (const name of ['runningMean', 'runningVar'] as const) if (layer[name]) compare(t, one, layer[name], name, step)
    if (layer.numBatchesTracked)
      t.deepEqual(layer.numBatchesTracked.dataSync(), one.get(`numBatchesTracked.${step}`).dataSync())
  }
}

/** Every case of PyTorch, through the layer of its dimensions or through a SyncBatchNorm that is alone. */
export async function checkEveryCase(t: ExecutionContext, device: Device, kind: LayerKind): Promise<void> {
  for (const one of await loadCases<Config>('batch-norm', device)) {
    runModule(t, one, kind === 'BatchNorm' ? build(one) : build(one, SyncBatchNorm))
  }
}

/** Which layers are checked. */
export const LAYER_KINDS = ['BatchNorm', 'SyncBatchNorm alone'] as const
/** One of them. */
export type LayerKind = (typeof LAYER_KINDS)[number]
