/** Process groups, collectives and SyncBatchNorm on one to four healthy ranks. */
import test from 'ava'

import { valuesOf, type SeenError } from './distributed/ranks.ts'
import type { Comparison } from './distributed/scenarios/conformance.ts'

const LENGTH = 1031
const numbers = (rank: number): number[] => Array.from({ length: LENGTH }, (_, i) => ((i * 7 + rank * 3) % 11) - 5)

interface Identity {
  before: boolean
  after: boolean
  end: boolean
  ranks: number[]
  timeout: number
  backend: string
  rank: number[]
  size: number[]
  localRank: number
  again: SeenError
  rankAfter: SeenError
}

test.serial('a rank knows who it is, from init to destroy', async (t) => {
  const values = await valuesOf<Identity>('collectives.identity', 3)
  values.forEach((value, rank) => {
    t.like(value, { before: false, after: true, end: false, timeout: 20_000, backend: 'tcp', localRank: rank })
    t.deepEqual([...value.ranks], [0, 1, 2])
    t.deepEqual(value.rank, [rank, rank, rank])
    t.deepEqual(value.size, [3, 3, 3])
    t.like(value.again, { name: 'DistributedError', code: 'ERR_ALREADY_INITIALIZED' })
    t.like(value.rankAfter, { name: 'DistributedError', code: 'ERR_NOT_INITIALIZED' })
  })
})

const JOIN: Record<string, (values: number[]) => number> = {
  sum: (values) => values.reduce((a, b) => a + b, 0),
  avg: (values) => values.reduce((a, b) => a + b, 0) / values.length,
  prod: (values) => values.reduce((a, b) => a * b, 1),
  min: (values) => Math.min(...values),
  max: (values) => Math.max(...values),
}

for (const size of [1, 2, 4]) {
  test.serial(`allReduce over ${size} ranks, for every operation and type`, async (t) => {
    const values = await valuesOf<Record<string, ArrayLike<number | bigint>[]>>('collectives.reductions', size)
    const inputs = Array.from({ length: size }, (_, rank) => numbers(rank))
    for (const [op, join] of Object.entries(JOIN)) {
      const expected = inputs[0]?.map((_, i) => join(inputs.map((input) => input[i] as number))) ?? []
      for (const value of values) {
        // Adding 0 makes a −0 of a product a 0.
        for (const result of value[op] ?? [])
          t.deepEqual(
            Array.from(result, (x) => Number(x) + 0),
            expected.map((x) => x + 0),
            op,
          )
        if (op === 'avg') continue
        for (const result of value[`${op} of integers`] ?? [null]) {
          t.deepEqual(
            Array.from(result as ArrayLike<bigint>, (x) => Number(x) + 0),
            expected.map((x) => x + 0),
          )
        }
      }
    }
  })
}

interface Copies {
  outputs: Float32Array[]
  tensors: BigInt64Array[]
  sent: Float64Array
  completed: boolean
}

test.serial('allGather, broadcast and barriers', async (t) => {
  for (const { outputs, tensors, sent, completed } of await valuesOf<Copies>('collectives.copies', 3)) {
    outputs.forEach((output, rank) => t.deepEqual([...output], numbers(rank)))
    t.deepEqual(
      tensors.map((values) => [...values].map(Number)),
      [0, 1, 2].map((rank) => [rank, 1, 2]),
    )
    t.deepEqual([...sent], numbers(2))
    t.true(completed)
  }
})

test.serial('a typed array is written when its work is waited for, once', async (t) => {
  const values = await valuesOf<{ untouched: number[]; delivered: number[]; afterwards: number[] }>(
    'collectives.delivery',
    2,
  )
  for (const value of values) {
    t.deepEqual(value, { untouched: [1, 2], delivered: [2, 4], afterwards: [9, 9] })
  }
})

interface Subgroups {
  even: { rank: number; size: number; ranks: number[] }
  pair: { rank: number; size: number; ranks: number[] }
  data: number
  strided: number
  outside: SeenError[]
  wrong: SeenError
}

test.serial('groups of some ranks; a rank outside gets an error, not a batch norm of its own', async (t) => {
  const values = await valuesOf<Subgroups>('collectives.subgroups', 4)
  values.forEach(({ even, pair, data, strided, outside, wrong }, rank) => {
    const inside = rank % 2 === 0
    t.deepEqual({ rank: even.rank, ranks: [...even.ranks] }, { rank: inside ? rank / 2 : -1, ranks: [0, 2] })
    const first = rank - (rank % 2)
    t.deepEqual(
      { rank: pair.rank, ranks: [...pair.ranks], size: pair.size },
      { rank: rank % 2, ranks: [first, first + 1], size: 2 },
    )
    t.is(data, 2 * first + 3)
    t.is(strided, inside ? 4 : rank + 1)
    t.is(outside.length, inside ? 0 : 3)
    for (const error of outside) t.like(error, { name: 'DistributedError', code: 'ERR_NOT_IN_GROUP' })
    t.like(wrong, { name: 'ArgumentError', code: 'ERR_ARGUMENT' })
  })
})

for (const size of [1, 2, 3, 4]) {
  test.serial(`SyncBatchNorm over ${size} ranks agrees with PyTorch over all their values`, async (t) => {
    const values = await valuesOf<Comparison[]>('conformance.syncBatchNorm', size, { deadline: 120_000 })
    for (const [rank, comparisons] of values.entries()) {
      t.true(comparisons.length > 0)
      for (const { name, result, error, tolerance } of comparisons) {
        // Written so that NaN fails.
        if (!(error <= tolerance)) t.fail(`rank ${rank}, ${name}, ${result}: ${error} > ${tolerance}`)
      }
    }
  })
}
