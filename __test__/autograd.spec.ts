/** The tape: order, accumulation, freeing, errors, user-defined operations, second derivatives. */
import test from 'ava'
import {
  ArgumentError,
  AutogradError,
  DTypeError,
  ShapeError,
  defineFunction,
  grad,
  keep,
  memory,
  noGrad,
  ones,
  tensor,
  tidy,
  zeros,
  type Tensor,
} from 'syncbn'
import * as F from 'syncbn/functional'

import {
  gradMode,
  onBackwardError,
  queueBackwardCallback,
  reachableLeaves,
  registerGradReadyHook,
} from '../dist/autograd.js'
import { checkPenalties } from './vectors/double-backward.ts'

const leaf = (values: number[]): Tensor => tensor(values, { requiresGrad: true })
const values = (x: Tensor | null): number[] => Array.from((x as Tensor).dataSync() as Float32Array)

test('gradients accumulate over uses and over passes until they are cleared', (t) => {
  const x = leaf([1, 2])
  x.mul(x).add(x).sum().backward()
  t.deepEqual(values(x.grad), [3, 5])
  x.sum().backward()
  t.deepEqual(values(x.grad), [4, 6])
  x.grad = null
  x.sum().backward()
  t.deepEqual(values(x.grad), [1, 1])
})

test('an upstream gradient is not taken over: changing it later does not change grad', (t) => {
  const x = leaf([1, 2])
  const upstream = tensor([3, 4])
  x.backward(upstream)
  x.reshape([2]).backward(upstream)
  t.deepEqual(values(x.grad), [6, 8])
  upstream.fill_(0)
  t.deepEqual(values(x.grad), [6, 8])
})

test('a leaf’s own gradient may be passed to backward', (t) => {
  const x = leaf([1, 2])
  x.sum().backward()
  x.backward(x.grad!)
  x.backward(x.grad!.reshape([2]))
  t.deepEqual(values(x.grad), [4, 4])
})

test('two leaves that get the same gradient do not share its memory', (t) => {
  const [a, b] = [leaf([1]), leaf([2])]
  a.add(b).backward()
  a.grad!.fill_(9)
  t.deepEqual(values(b.grad), [1])
})

test('a sum of gradients is not formed in memory that another operation waits for', (t) => {
  const [a, b] = [leaf([1]), leaf([1])]
  const [x, y] = [a.mul(1), b.mul(1)]
  const scaled = x.mul(5)
  x.add(y).add(scaled).backward()
  t.deepEqual([...values(a.grad), ...values(b.grad)], [6, 1])
})

test('a chain of 10,000 operations neither overflows the stack nor leaks', (t) => {
  const x = leaf([1])
  const y = tidy(() => {
    let sum: Tensor = x
    for (let i = 0; i < 10_000; i++) sum = sum.add(1)
    return sum
  })
  y.backward()
  t.deepEqual(values(x.grad), [1])
})

test('disposed intermediates do not break backward', (t) => {
  const x = leaf([2])
  const square = x.mul(x)
  const loss = square.mul(square)
  square.dispose()
  loss.backward()
  t.deepEqual(values(x.grad), [32])
})

test('a graph is freed by backward unless retained', (t) => {
  const x = leaf([3])
  const y = x.mul(x)
  y.backward(undefined, { retainGraph: true })
  y.backward()
  t.deepEqual(values(x.grad), [12])
  t.throws(() => y.backward(), { instanceOf: AutogradError, code: 'ERR_GRAPH_FREED' })
  t.deepEqual(values(x.grad), [12])
})

test.serial('backward gives back what the graph saved', (t) => {
  const x = leaf([3, 4])
  const before = memory().cpu!.tensors
  tidy(() => x.mul(x).mul(x).sum().backward())
  t.is(memory().cpu!.tensors, before + 1, 'the gradient alone is new')
  x.grad = null
  t.is(memory().cpu!.tensors, before)
})

test.serial('a graph that never sees a backward is freed with the last tensor that leads to it', (t) => {
  const x = leaf([3, 4])
  const before = memory().cpu!.tensors
  tidy(() => void F.relu(x.mul(x).mul(x).reshape([2, 1])).sum())
  t.is(memory().cpu!.tensors, before, 'scoped')
  const [left, right] = tidy(() => {
    const shared = x.mul(x)
    return [shared.mul(shared).sum(), shared.mul(3).sum()] as const
  })
  left.dispose()
  right.backward()
  t.deepEqual(values(x.grad), [18, 24], 'what another tensor still leads to stays')
  right.dispose()
  x.grad!.dispose()
  t.is(memory().cpu!.tensors, before, 'disposed by hand')
  tidy(() => {
    let y: Tensor = x
    for (let i = 0; i < 10_000; i++) y = y.mul(x)
    return y
  }).dispose()
  t.is(memory().cpu!.tensors, before, 'a long chain')
})

test('a saved tensor that was changed is an error that names the operation', (t) => {
  const x = leaf([1, 2])
  const factor = tensor([3, 4])
  const y = x.mul(factor).sum()
  factor.fill_(0)
  t.throws(() => y.backward(), { instanceOf: AutogradError, code: 'ERR_SAVED_TENSOR_MODIFIED', message: /'mul'/ })
  t.is(x.grad, null)
})

test('errors of backward', (t) => {
  t.throws(() => zeros([1]).backward(), { instanceOf: AutogradError, code: 'ERR_NO_GRAPH' })
  t.throws(() => leaf([1, 2]).mul(2).backward(), { instanceOf: AutogradError, message: /\[2\]/ })
  t.throws(() => leaf([1, 2]).backward(zeros([3])), { instanceOf: ShapeError })
  t.throws(() => leaf([1, 2]).backward(zeros([2], { dtype: 'float64' })), { instanceOf: DTypeError })
  const x = leaf([1, 2])
  t.throws(
    () => {
      x.grad = zeros([1])
    },
    { instanceOf: ShapeError },
  )
  t.throws(
    () => {
      x.mul(2).requiresGrad = false
    },
    { instanceOf: ArgumentError },
  )
})

test('noGrad records nothing, is restored after a throw, and refuses promises', (t) => {
  const x = leaf([1])
  t.false(noGrad(() => x.mul(2)).requiresGrad)
  t.throws(() =>
    noGrad(() => {
      throw new Error('stop')
    }),
  )
  t.throws(() => noGrad(async () => 1), { instanceOf: ArgumentError })
  t.true(gradMode.enabled)
  t.true(x.mul(2).requiresGrad)
  t.false(x.mul(2).detach().requiresGrad)
  t.false(x.argmax(0).requiresGrad)
})

test('grad: leaves and intermediates, several outputs, no accumulation', (t) => {
  const [x, w] = [leaf([2, 3]), leaf([5, 7])]
  const y = x.mul(w)
  const z = y.mul(y)
  const [gx, gy] = grad([z.sum(), y.sum()], [x, y])
  t.deepEqual(values(gy!), [2 * 10 + 1, 2 * 21 + 1])
  t.deepEqual(values(gx!), [5 * 21, 7 * 43])
  t.is(x.grad, null)
  t.is(w.grad, null)
})

test('grad names the input that the outputs do not depend on', (t) => {
  const [x, other] = [leaf([1]), leaf([1])]
  t.throws(() => grad(x.mul(2), [x, other]), { instanceOf: AutogradError, message: /input 1/ })
  t.throws(() => grad(x.mul(2), [zeros([1])]), { instanceOf: AutogradError, message: /input 0/ })
})

test('second and third derivatives of a cube', (t) => {
  const x = leaf([2])
  const [first] = grad(x.mul(x).mul(x), [x], { createGraph: true })
  const [second] = grad(first!, [x], { createGraph: true })
  const [third] = grad(second!, [x])
  t.deepEqual(
    [first, second, third].map((g) => g!.item()),
    [12, 12, 6],
  )
  t.false(third!.requiresGrad)
})

test('backward with createGraph makes gradients that can be differentiated', (t) => {
  const x = leaf([3])
  x.mul(x).mul(x).backward(undefined, { createGraph: true })
  t.true(x.grad!.requiresGrad)
  const [second] = grad(x.grad!, [x])
  t.is(second!.item(), 18)
})

test('operations without a second derivative say so', (t) => {
  const x = zeros([1, 1, 3, 3], { requiresGrad: true })
  const w = ones([1, 1, 2, 2], { requiresGrad: true })
  const [gx] = grad(F.conv2d(x, w).sum(), [x], { createGraph: true })
  t.throws(() => grad(gx!.sum(), [w]), { instanceOf: AutogradError, code: 'ERR_NOT_DIFFERENTIABLE', message: /conv2d/ })
})

test('gradient penalties through batch norm are those of PyTorch', (t) => checkPenalties(t, 'cpu'))

const square = defineFunction<[Tensor, number]>({
  forward(ctx, x, factor) {
    ctx.saveForBackward(x)
    ctx['factor'] = factor
    return x.mul(x).mul(factor)
  },
  backward(ctx, gradOutput) {
    const [x] = ctx.savedTensors
    return [gradOutput.mul(x!).mul(2 * (ctx['factor'] as number)), null]
  },
})

test.serial('defineFunction: values, gradients, second derivative, no leak', (t) => {
  const x = leaf([3])
  const before = memory().cpu!.tensors
  tidy(() => {
    const [first] = grad(square(x, 5), [x], { createGraph: true })
    t.is(first!.item(), 30)
    t.is(grad(first!, [x])[0]!.item(), 10)
  })
  t.is(memory().cpu!.tensors, before)
})

test('defineFunction saves its own result with its history', (t) => {
  const reciprocal = defineFunction<[Tensor]>({
    forward(ctx, x) {
      const y = ones([1]).div(x)
      ctx.saveForBackward(y)
      return y
    },
    backward(ctx, gradOutput) {
      const [y] = ctx.savedTensors
      return [gradOutput.mul(y!).mul(y!).mul(-1)]
    },
  })
  const x = leaf([2])
  const [first] = grad(reciprocal(x), [x], { createGraph: true })
  t.is(first!.item(), -0.25)
  t.is(grad(first!, [x])[0]!.item(), 0.25)
})

test('defineFunction: wrong results are named', (t) => {
  const x = leaf([1, 2])
  const wrap = (backward: (g: Tensor) => Array<Tensor | null>, forward = (y: Tensor): Tensor => y.mul(2)) =>
    defineFunction<[Tensor]>({ forward: (_ctx, y) => forward(y), backward: (_ctx, g) => backward(g) })
  t.throws(
    () =>
      wrap(() => [])(x)
        .sum()
        .backward(),
    { instanceOf: AutogradError, message: /expected 1/ },
  )
  t.throws(
    () =>
      wrap(() => [zeros([3])])(x)
        .sum()
        .backward(),
    { instanceOf: ShapeError },
  )
  t.throws(
    () =>
      wrap(
        (g) => [g],
        () => 1 as never,
      )(x),
    { instanceOf: ArgumentError },
  )
  wrap(
    (g) => [g],
    (y) => y,
  )(x)
    .sum()
    .backward()
  t.deepEqual(values(x.grad), [1, 1])
})

test('hooks of leaves run when the gradient is complete; callbacks at the end; removal works', (t) => {
  const [a, b] = [leaf([1]), leaf([2])]
  const events: string[] = []
  const remove = registerGradReadyHook(a, (x) => {
    events.push(`a ${x.grad!.item()}`)
    queueBackwardCallback(() => events.push('end'))
  })
  registerGradReadyHook(b, () => events.push('b'))
  a.mul(b).add(a).backward()
  t.deepEqual(events.sort(), ['a 3', 'b', 'end'])
  remove()
  a.mul(1).backward()
  t.is(events.length, 3)
  t.throws(() => queueBackwardCallback(() => undefined), { instanceOf: AutogradError })
  t.throws(() => registerGradReadyHook(zeros([1]), () => undefined), { instanceOf: AutogradError })
})

test('a backward that throws calls the error callbacks and leaves no tensors', (t) => {
  const x = leaf([1])
  const events: string[] = []
  const failing = defineFunction<[Tensor]>({
    forward: (_ctx, y) => y.mul(1),
    backward() {
      onBackwardError(() => events.push('error'))
      throw new Error('stop')
    },
  })
  t.throws(() => failing(x).backward(), { message: 'stop' })
  t.deepEqual(events, ['error'])
  t.true(gradMode.enabled)
  x.mul(2).backward()
  t.deepEqual(values(x.grad), [2])
})

test('reachableLeaves walks from the outputs', (t) => {
  const [a, b, c] = [leaf([1]), leaf([2]), leaf([3])]
  t.deepEqual(reachableLeaves([a.mul(b)]), new Set([a, b]))
  t.deepEqual(reachableLeaves([c, a.detach()]), new Set([c]))
})

test('a gradient that was seen outlives zeroGrad; kept gradients outlive their pass', (t) => {
  const x = leaf([1])
  x.mul(2).backward()
  const seen = x.grad!
  x.grad = null
  t.is(seen.item(), 2)
  const kept: Tensor[] = []
  const identity = defineFunction<[Tensor]>({
    forward: (_ctx, y) => y.mul(1),
    backward: (_ctx, g) => {
      kept.push(keep(g))
      return [g]
    },
  })
  identity(x).backward()
  t.is(kept[0]!.item(), 1)
})
