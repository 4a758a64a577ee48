/** Every operation against PyTorch, forward and backward, and against finite differences. */
import test from 'ava'
import { ArgumentError, ShapeError, randn, tensor } from 'syncbn'
import * as F from 'syncbn/functional'

import { checkEveryCase, checkGradient, differentiable } from './vectors/operations.ts'

test('every case of PyTorch', (t) => checkEveryCase(t, 'cpu'))

for (const name of Object.keys(differentiable('cpu'))) {
  test(`gradient against central differences: ${name}`, (t) => checkGradient(t, 'cpu', name))
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
