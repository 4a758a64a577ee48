/** DistributedSampler and DataLoader. */
import test from 'ava'

import {
  ArgumentError,
  DataLoader,
  DistributedSampler,
  keep,
  manualSeed,
  memory,
  tensor,
  type Dataset,
  type Tensor,
} from 'syncbn'

import { readManifest } from './distributed/fixtures.ts'

interface SamplerCase {
  name: string
  length: number
  numReplicas: number
  shuffle: boolean
  dropLast: boolean
  seed: number
  epoch: number
  indices: number[][]
}

test('DistributedSampler gives PyTorch’s indices', (t) => {
  for (const entry of readManifest<SamplerCase>('distributed-sampler')) {
    entry.indices.forEach((expected, rank) => {
      const sampler = new DistributedSampler(entry, { ...entry, rank })
      sampler.setEpoch(entry.epoch)
      t.deepEqual([...sampler], expected, `${entry.name}, rank ${rank}`)
      t.is(sampler.length, expected.length)
      t.deepEqual([...sampler], expected, 'an epoch can be repeated')
    })
  }
})

test('DistributedSampler refuses what makes no sense', (t) => {
  const dataset = { length: 10 }
  const refuse = (options: object, pattern: RegExp): void => {
    const error = t.throws(() => new DistributedSampler(dataset, options), { instanceOf: ArgumentError })
    t.regex(error?.message ?? '', pattern)
  }
  refuse({ numReplicas: 4, rank: 4 }, /4.*\[0, 3\]/)
  refuse({ numReplicas: 4, rank: -1 }, /-1.*\[0, 3\]/)
  refuse({ numReplicas: 0, rank: 0 }, /numReplicas.*0/)
  refuse({ numReplicas: 1, rank: 0, seed: 1.5 }, /seed.*1.5/)
  t.throws(() => new DistributedSampler(dataset), { code: 'ERR_NOT_INITIALIZED' })
  t.throws(() => new DistributedSampler(dataset, { numReplicas: 1, rank: 0 }).setEpoch(-1), {
    instanceOf: ArgumentError,
  })
})

const squares: Dataset<number> = { length: 7, get: (index) => index * index }

async function all<B, R>(loader: DataLoader<unknown, B>, read: (batch: B) => R): Promise<R[]> {
  const results: R[] = []
  for await (const batch of loader) results.push(read(batch))
  return results
}

const values = (batch: Tensor): number[] => Array.from(batch.dataSync() as Float32Array, Number)

test('batches come in order, and the last may be smaller', async (t) => {
  const loader = new DataLoader<number, Tensor>(squares, { batchSize: 3 })
  t.is(loader.length, 3)
  t.deepEqual(await all(loader, values), [[0, 1, 4], [9, 16, 25], [36]])
  const whole = new DataLoader<number, Tensor>(squares, { batchSize: 3, dropLast: true })
  t.is(whole.length, 2)
  t.deepEqual(await all(whole, values), [
    [0, 1, 4],
    [9, 16, 25],
  ])
})

test('shuffling is a permutation that the seed decides', async (t) => {
  const loader = new DataLoader<number, Tensor>(squares, { batchSize: 7, shuffle: true })
  const orders = []
  for (const seed of [1, 1, 2]) {
    manualSeed(seed)
    orders.push((await all(loader, values))[0])
  }
  t.deepEqual(orders[0], orders[1])
  t.notDeepEqual(orders[0], orders[2])
  t.deepEqual(
    [...(orders[2] ?? [])].sort((a, b) => a - b),
    [0, 1, 4, 9, 16, 25, 36],
  )
})

test('a sampler decides the order', async (t) => {
  const sampler = new DistributedSampler(squares, { numReplicas: 2, rank: 1, shuffle: false })
  const loader = new DataLoader<number, Tensor>(squares, { batchSize: 2, sampler })
  t.is(loader.length, 2)
  t.deepEqual(await all(loader, values), [
    [1, 9],
    [25, 0],
  ])
})

test('samples are joined field by field', async (t) => {
  interface Sample {
    image: Tensor
    label: number
    weight: number
    pair: [bigint, Float64Array]
    name: string
  }
  const dataset: Dataset<Sample> = {
    length: 2,
    get: (i) => ({
      image: tensor([[i, i + 1]]),
      label: i,
      weight: i + 0.5,
      pair: [BigInt(i), Float64Array.of(i, i)],
      name: `n${i}`,
    }),
  }
  type Batch = { image: Tensor; label: Tensor; weight: Tensor; pair: [Tensor, Tensor]; name: string[] }
  const [batch] = await all(new DataLoader<Sample, Batch>(dataset, { batchSize: 2 }), (b) => ({
    facts: [b.image, b.label, b.weight, ...b.pair].map(({ shape, dtype }) => [[...shape], dtype]),
    values: [b.image, b.label, b.weight, ...b.pair].map(values),
    name: b.name,
  }))
  t.deepEqual(batch?.facts, [
    [[2, 1, 2], 'float32'],
    [[2], 'int64'],
    [[2], 'float32'],
    [[2], 'int64'],
    [[2, 2], 'float64'],
  ])
  t.deepEqual(batch?.values, [
    [0, 1, 1, 2],
    [0, 1],
    [0.5, 1.5],
    [0, 1],
    [0, 0, 1, 1],
  ])
  t.deepEqual(batch?.name, ['n0', 'n1'])
})

test('samples that cannot be joined are an error', async (t) => {
  const mixed: Dataset<unknown> = { length: 2, get: (i) => (i === 0 ? 1 : 'one') }
  await t.throwsAsync(() => all(new DataLoader(mixed, { batchSize: 2 }), () => 0), { instanceOf: ArgumentError })
  const uneven: Dataset<unknown> = { length: 2, get: (i) => tensor(Array(i + 1).fill(0)) }
  await t.throwsAsync(() => all(new DataLoader(uneven, { batchSize: 2 }), () => 0), { code: 'ERR_SHAPE' })
})

for (const kind of ['synchronous', 'asynchronous', 'mixed']) {
  test.serial(`a ${kind} dataset leaves no tensor behind but what it owns`, async (t) => {
    const owned = tensor([5, 5])
    const make = (index: number): Tensor[] => [tensor([index, 1]), owned]
    const dataset: Dataset<Tensor[]> = {
      length: 6,
      get: (i) => (kind === 'synchronous' || (kind === 'mixed' && i < 3) ? make(i) : Promise.resolve(make(i))),
    }
    const start = memory().cpu.tensors
    const seen: Tensor[] = []
    let kept: Tensor | undefined
    for await (const [batch, others] of new DataLoader<Tensor[], [Tensor, Tensor]>(dataset, { batchSize: 2 })) {
      t.true(seen.every((tensor) => tensor.disposed || tensor === kept))
      seen.push(batch, others)
      t.deepEqual([batch.disposed, others.disposed, [...batch.shape]], [false, false, [2, 2]])
      kept ??= keep(batch)
    }
    t.deepEqual(
      seen.map((tensor) => tensor.disposed),
      [false, true, true, true, true, true],
    )
    t.false(owned.disposed)
    kept?.dispose()
    if (kind === 'synchronous') t.is(memory().cpu.tensors, start)
  })
}

test('tensors that a collate function passes on belong to the dataset', async (t) => {
  const owned = [tensor([1]), tensor([2])]
  const dataset: Dataset<Tensor> = { length: 2, get: (i) => owned[i] as Tensor }
  t.deepEqual(await all(new DataLoader<Tensor, Tensor>(dataset, { collate: ([s]) => s as Tensor }), values), [[1], [2]])
  t.deepEqual(
    owned.map((tensor) => tensor.disposed),
    [false, false],
  )
})

test('leaving the loop releases the batch, and the event loop gets turns', async (t) => {
  let turns = 0
  const timer = setInterval(() => (turns += 1), 0)
  let last: Tensor | undefined
  for await (const batch of new DataLoader<number, Tensor>({ length: 50, get: (i) => i })) {
    last = batch
    const until = performance.now() + 2
    while (performance.now() < until);
    if (batch.item() === 40) break
  }
  clearInterval(timer)
  t.true(last?.disposed)
  t.true(turns > 5)
})

test('a signal ends the iteration', async (t) => {
  const controller = new AbortController()
  const loader = new DataLoader<number, Tensor>(squares, { signal: controller.signal })
  let batches = 0
  await t.throwsAsync(
    async () => {
      for await (const _ of loader) if ((batches += 1) === 2) controller.abort(new Error('enough'))
    },
    { message: 'enough' },
  )
  t.is(batches, 2)
})

test('options that contradict each other or are not in this release', (t) => {
  const refuse = (options: object, dataset: unknown = squares): void => {
    t.throws(() => new DataLoader(dataset as Dataset<number>, options), { instanceOf: ArgumentError })
  }
  refuse({ batchSize: 0 })
  refuse({ batchSize: 1.5 })
  refuse({ shuffle: true, sampler: [1, 2] })
  refuse({ numWorkers: 1 })
  refuse({ prefetchFactor: 2 })
  refuse({}, new URL('file:///dataset.js'))
  refuse({}, { length: 3 })
})
