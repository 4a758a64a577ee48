/** Tensors: making, reading, converting, disposing. */
import { inspect } from 'node:util'
import test from 'ava'
import {
  ArgumentError,
  AutogradError,
  DTypeError,
  ShapeError,
  SyncBnError,
  arange,
  full,
  keep,
  memory,
  noGrad,
  ones,
  tensor,
  tidy,
  zeros,
  type Tensor,
} from 'syncbn'

import { loadCases } from './helpers/fixtures.ts'

test('nested arrays give shape and values; dtype follows the data', (t) => {
  const matrix = tensor([
    [1, 2, 3],
    [4, 5, 6],
  ])
  t.deepEqual([...matrix.shape], [2, 3])
  t.is(matrix.dtype, 'float32')
  t.is(matrix.numel, 6)
  t.deepEqual(matrix.dataSync(), Float32Array.of(1, 2, 3, 4, 5, 6))
  t.is(tensor(7).item(), 7)
  t.deepEqual([...tensor(7).shape], [])
  t.is(tensor([1n, 2n]).dtype, 'int64')
  t.is(tensor(new Float64Array(2)).dtype, 'float64')
  t.is(tensor(new Int32Array(2)).dtype, 'int32')
  t.is(tensor(new BigInt64Array(2)).dtype, 'int64')
  t.deepEqual(tensor([1, -2], { dtype: 'int64' }).dataSync(), BigInt64Array.of(1n, -2n))
  t.deepEqual([...tensor([[], []]).shape], [2, 0])
})

test('ragged arrays name the place', (t) => {
  t.throws(() => tensor([[1, 2], [3]]), { instanceOf: ShapeError, message: /length 2 at \[1\], got 1/ })
  t.throws(
    () =>
      tensor([
        [1, 2],
        [3, [4]],
      ]),
    { instanceOf: ShapeError, message: /number at \[1\]\[1\]/ },
  )
  t.throws(() => tensor([[1], 2] as never), { instanceOf: ShapeError, message: /\[1\]/ })
  t.throws(() => tensor([1, 2n]), { instanceOf: ArgumentError, message: /\[1\]/ })
  t.throws(() => tensor([1, undefined] as never), { instanceOf: ArgumentError, message: /\[1\]/ })
})

test('raw half bits need a half dtype', (t) => {
  const bits = Uint16Array.of(0x3c00, 0xc000)
  t.deepEqual(tensor(bits, { dtype: 'float16' }).dataSync(), Float32Array.of(1, -2))
  t.deepEqual(tensor(bits, { dtype: 'float16' }).dataSync({ raw: true }), bits)
  t.throws(() => tensor(bits), { instanceOf: DTypeError })
  t.throws(() => tensor(bits, { dtype: 'float32' }), { instanceOf: DTypeError })
})

test('conversions to half types are those of PyTorch', async (t) => {
  for (const half of await loadCases('half')) {
    const converted = half.get('source').to(half.dtype as 'float16')
    const numbers = (x: Tensor) => Array.from(x.to('float32').dataSync() as Float32Array)
    t.deepEqual(numbers(converted), numbers(half.get('halfAsFloat32')), half.name)
    t.throws(() => converted.add(converted), { instanceOf: DTypeError })
  }
})

test('full, ones, arange, shape option', (t) => {
  t.deepEqual(full([2], 1.5).dataSync(), Float32Array.of(1.5, 1.5))
  t.deepEqual(ones([2], { dtype: 'int32' }).dataSync(), Int32Array.of(1, 1))
  t.deepEqual(arange(3).dataSync(), BigInt64Array.of(0n, 1n, 2n))
  t.deepEqual([...tensor(new Float32Array(6), { shape: [2, 3] }).shape], [2, 3])
  t.throws(() => tensor(new Float32Array(6), { shape: [4] }), { instanceOf: ShapeError })
  t.throws(() => zeros([-1]), { instanceOf: SyncBnError })
  t.throws(() => zeros([1.5]), { instanceOf: ArgumentError })
  t.throws(() => zeros(3 as never), { instanceOf: ArgumentError })
})

test('memory formats change the order in memory, not the values read', (t) => {
  const x = arange(24).to('float32').reshape([1, 2, 3, 4])
  const last = x.to({ memoryFormat: 'channelsLast' })
  t.is(last.memoryFormat, 'channelsLast')
  t.deepEqual(last.dataSync(), x.dataSync())
  t.deepEqual(last.reshape([24]).dataSync(), x.dataSync())
  t.throws(() => zeros([2, 3], { memoryFormat: 'channelsLast' }), { instanceOf: ShapeError })
})

test('item: one element; int64 beyond 2^53 is a RangeError', async (t) => {
  t.throws(() => zeros([2]).item(), { instanceOf: ShapeError })
  t.is(tensor([2n ** 53n]).item(), 2 ** 53)
  t.throws(() => tensor([2n ** 53n + 1n]).item(), { instanceOf: RangeError })
  t.deepEqual(await tensor([1, 2]).data(), Float32Array.of(1, 2))
})

test('data is a copy in both directions', (t) => {
  const source = Float32Array.of(1, 2)
  const x = tensor(source)
  source[0] = 9
  const read = x.dataSync()
  read[1] = 9
  t.deepEqual(x.dataSync(), Float32Array.of(1, 2))
})

test('detach and reshape share storage, clone does not', (t) => {
  const x = tensor([1, 2, 3, 4])
  const views = [x.detach(), x.reshape([2, 2])]
  const copy = x.clone()
  x.fill_(5)
  for (const view of views) t.deepEqual([...(view.dataSync() as Float32Array)], [5, 5, 5, 5])
  t.deepEqual(copy.dataSync(), Float32Array.of(1, 2, 3, 4))
  t.throws(() => x.reshape([-1, -1]), { instanceOf: ShapeError })
})

test('copy_ converts, checks the shape first, and refuses tracked tensors outside noGrad', (t) => {
  const x = zeros([2])
  t.is(x.copy_(tensor(Float64Array.of(1, 2))), x)
  t.deepEqual(x.dataSync(), Float32Array.of(1, 2))
  t.throws(() => x.copy_(zeros([3])), { instanceOf: ShapeError })
  t.deepEqual(x.dataSync(), Float32Array.of(1, 2))
  const leaf = zeros([2], { requiresGrad: true })
  t.throws(() => leaf.fill_(1), { instanceOf: AutogradError, code: 'ERR_IN_PLACE' })
  t.throws(() => x.copy_(leaf), { instanceOf: AutogradError, code: 'ERR_IN_PLACE' })
  noGrad(() => leaf.fill_(1))
  t.deepEqual(leaf.dataSync(), Float32Array.of(1, 1))
})

test('use after dispose is ERR_DISPOSED; disposing twice and with `using` semantics is fine', (t) => {
  const x = zeros([2])
  x.dispose()
  x[Symbol.dispose]()
  t.true(x.disposed)
  for (const use of [() => x.shape, () => x.add(1), () => x.dataSync(), () => x.detach(), () => zeros([2]).add(x)]) {
    t.throws(use, { instanceOf: ArgumentError, code: 'ERR_DISPOSED' })
  }
  t.is(inspect(x), 'Tensor(disposed)')
})

test('inspect is short', (t) => {
  t.is(inspect(zeros([2, 3], { requiresGrad: true })), 'Tensor(float32 [2, 3], requiresGrad)')
})

test('integers take no gradient', (t) => {
  t.throws(() => zeros([1], { dtype: 'int64', requiresGrad: true }), { instanceOf: DTypeError })
  t.throws(
    () => {
      arange(2).requiresGrad = true
    },
    { instanceOf: DTypeError },
  )
  t.throws(() => arange(2).add(1), { instanceOf: DTypeError })
})

test.serial('tidy disposes what is not returned or kept, wherever it is returned', (t) => {
  const before = memory().cpu!.tensors
  const made: Tensor[] = []
  const make = (): Tensor => {
    const x = zeros([3])
    made.push(x)
    return x
  }
  const result = tidy(() => {
    make()
    keep(make())
    return {
      list: [make()],
      map: new Map([['a', make()]]),
      inner: tidy(() => {
        make()
        return make()
      }),
    }
  })
  t.deepEqual(
    made.map((x) => x.disposed),
    [true, false, false, false, true, false],
  )
  t.is(memory().cpu!.tensors - before, 4)
  for (const x of made) x.dispose()
  t.is(memory().cpu!.tensors, before)
  t.truthy(result)
})

test.serial('tidy releases everything when the function throws, and refuses promises', (t) => {
  const before = memory().cpu!.tensors
  t.throws(
    () =>
      tidy(() => {
        zeros([3])
        tidy(() => zeros([2]))
        throw new Error('stop')
      }),
    { message: 'stop' },
  )
  t.throws(() => tidy(async () => zeros([3])), { instanceOf: ArgumentError })
  t.is(memory().cpu!.tensors, before)
})
