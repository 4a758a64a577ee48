/** SyncBatchNorm on the reference vectors: every rank compares what it gets. */
import { destroyProcessGroup, newGroup, SyncBatchNorm, type ProcessGroup, type Tensor } from 'syncbn'

import { openVectors, readManifest, type FixtureCase } from '../fixtures.ts'
import { device, join } from '../place.ts'

/** One result of one case on one rank. */
export interface Comparison {
  name: string
  result: string
  /** Largest absolute error against the float64 reference. */
  error: number
  tolerance: number
}

/** Four units in the last place of the result's scale. */
const EPSILON = { float32: 2 ** -23, float64: 2 ** -52 }

/** Runs all cases of the current world size. */
export async function syncBatchNorm(): Promise<Comparison[]> {
  const { rank, size } = await join()
  const vectors = await openVectors('sync-batch-norm')
  const comparisons: Comparison[] = []
  for (const entry of readManifest<FixtureCase>('sync-batch-norm').filter(({ worldSize }) => worldSize === size)) {
    const groups: ProcessGroup[] = []
    for (const ranks of entry.groups) groups.push(await newGroup(ranks))
    const own = groups.findIndex((group) => group.rank !== -1)
    const case_ = new Case(entry, rank, own, (name) => vectors(entry, name))
    comparisons.push(...case_.run(groups[own] as ProcessGroup))
  }
  await destroyProcessGroup()
  return comparisons
}

class Case {
  readonly #entry: FixtureCase
  readonly #rank: number
  readonly #groupIndex: number
  readonly #vector: (name: string) => Tensor | null

  constructor(entry: FixtureCase, rank: number, groupIndex: number, vector: (name: string) => Tensor | null) {
    this.#entry = entry
    this.#rank = rank
    this.#groupIndex = groupIndex
    this.#vector = vector
  }

  run(group: ProcessGroup): Comparison[] {
    const layer = this.#layer(group)
    return Array.from({ length: this.#entry.steps }, (_, step) => this.#step(layer, step)).flat()
  }

  #layer(group: ProcessGroup): SyncBatchNorm {
    const { shapes, momentum, eps, affine, dtype } = this.#entry
    const layer = new SyncBatchNorm((shapes[0] as number[])[1] as number, {
      momentum,
      eps,
      affine,
      dtype,
      device,
      processGroup: group,
    })
    const names = {
      weight: 'weight',
      bias: 'bias',
      runningMean: 'running_mean',
      runningVar: 'running_var',
      numBatchesTracked: 'num_batches_tracked',
    }
    const state = new Map<string, Tensor>()
    for (const [ours, key] of Object.entries(names)) {
      const value = this.#vector(ours)
      if (value !== null) state.set(key, value)
    }
    layer.loadStateDict(state)
    return layer
  }

  #step(layer: SyncBatchNorm, step: number): Comparison[] {
    const mine = `${step}.${this.#rank}`
    const ours = `${step}.${this.#groupIndex}`
    const input = (this.#vector(`input.${mine}`) as Tensor).to(device).clone()
    input.requiresGrad = true
    layer.zeroGrad()
    const output = layer.call(input)
    const gradOutput = this.#vector(`gradOutput.${mine}`)
    if (gradOutput !== null) output.backward(gradOutput.to(device))
    return [
      this.#compare('output', output, mine),
      this.#compare('runningMean', layer.runningMean, ours),
      this.#compare('runningVar', layer.runningVar, ours),
      this.#compare('numBatchesTracked', layer.numBatchesTracked, ours),
      ...(gradOutput === null
        ? []
        : [
            this.#compare('gradInput', input.grad, mine),
            this.#compare('gradWeight', layer.weight?.grad ?? null, mine),
            this.#compare('gradBias', layer.bias?.grad ?? null, mine),
          ]),
    ].filter((comparison) => comparison !== null)
  }

  #compare(result: string, actual: Tensor | null, suffix: string): Comparison | null {
    const { name, dtype, worldSize, plainError, pytorchError, conditioning } = this.#entry
    const expected = this.#vector(`${result}Float64.${suffix}`) ?? this.#vector(`${result}.${suffix}`)
    if (expected === null && actual === null) return null
    const label = { name: `${name} step ${suffix}`, result }
    if (expected === null || actual === null) return { ...label, error: NaN, tolerance: 0 }
    const [wanted, got] = [expected.dataSync(), actual.dataSync()]
    const scale = Math.max(0, ...Array.from(wanted as Float64Array, (value) => Math.abs(Number(value))))
    const error = largestDifference(wanted as Float64Array, got as Float64Array)
    if (result === 'numBatchesTracked') return { ...label, error, tolerance: 0 }
    const fromReference = dtype === 'float64' ? (pytorchError[result] ?? 0) : 0
    // The ranks' means are rounded before their differences enter the variance, however exact the rest is.
    const merging = result === 'runningVar' && worldSize > 1 ? conditioning : 0
    const allowed = Math.max(2 * (plainError[result] ?? 0), 4 * EPSILON[dtype] * scale) + fromReference + merging
    // A float64 case has no reference that is more exact, and a GPU sums in another order than either side.
    const order = device !== 'cpu' && dtype === 'float64' ? 2 : 1
    return { ...label, error, tolerance: order * allowed }
  }
}

function largestDifference(wanted: ArrayLike<number | bigint>, got: ArrayLike<number | bigint>): number {
  if (wanted.length !== got.length) return Infinity
  let largest = 0
  for (let i = 0; i < wanted.length; i += 1) {
    const difference = Math.abs(Number(wanted[i]) - Number(got[i]))
    if (!(difference <= largest)) largest = difference
  }
  return largest
}
