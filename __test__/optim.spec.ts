/** Optimizers against PyTorch; state dicts. */
import test from 'ava'
import { AdamW, ArgumentError, SGD, memory, noGrad, ones, parameter, tensor, zeros, type Tensor } from 'syncbn'

import { toNumbers } from './helpers/closeness.ts'
import { checkContinuation, checkSteps } from './vectors/optimizers.ts'

test('five steps of every case of PyTorch', (t) => checkSteps(t, 'cpu'))

test('a state dict continues a run exactly', (t) => checkContinuation(t, 'cpu'))

test('loadStateDict checks keys and shapes before it changes anything', (t) => {
  const p = parameter(ones([2]))
  const optimizer = new SGD([p], { lr: 0.1, momentum: 0.9 })
  p.grad = ones([2])
  optimizer.step()
  const state = optimizer.stateDict()
  t.deepEqual([...state.keys()].sort(), [
    'param_groups.0.dampening',
    'param_groups.0.lr',
    'param_groups.0.momentum',
    'param_groups.0.nesterov',
    'param_groups.0.weight_decay',
    'state.0.momentum_buffer',
    'state.0.step',
  ])
  const fails = (change: (s: Map<string, Tensor>) => void, message: RegExp) => {
    const copy = new Map(state)
    copy.set('param_groups.0.lr', tensor(9))
    change(copy)
    t.throws(() => optimizer.loadStateDict(copy), {
      instanceOf: ArgumentError,
      code: 'ERR_STATE_DICT',
      message,
    } as never)
    t.is(optimizer.lr, 0.1)
  }
  fails((s) => s.delete('param_groups.0.momentum'), /missing.*momentum/)
  fails((s) => s.set('state.1.momentum_buffer', ones([2])), /unexpected.*state\.1/)
  fails((s) => s.set('state.0.momentum_buffer', ones([3])), /\[2\].*\[3\]/)
  fails((s) => s.delete('state.0.step'), /missing.*step/)
})

test('arguments are checked; lr may change between steps', (t) => {
  const p = parameter(ones([2]))
  const sgd = (options: object) => () => new SGD([p], { lr: 0.1, ...options })
  const expected = { instanceOf: ArgumentError }
  t.throws(sgd({ lr: -1 }), expected)
  t.throws(sgd({ lr: NaN }), expected)
  t.throws(sgd({ momentum: -1 }), expected)
  t.throws(sgd({ weightDecay: -1 }), expected)
  t.throws(sgd({ nesterov: true }), expected)
  t.throws(sgd({ nesterov: true, momentum: 0.9, dampening: 0.1 }), expected)
  t.throws(() => new AdamW([p], { betas: [1, 0.9] }), expected)
  t.throws(() => new AdamW([p], { eps: -1 }), expected)
  t.throws(() => new SGD([], { lr: 1 }), expected)
  t.throws(() => new SGD([p, p], { lr: 1 }), expected)
  t.throws(() => new SGD([p.mul(2)], { lr: 1 }), expected)
  t.throws(() => new SGD([3 as never], { lr: 1 }), expected)
  const optimizer = new SGD([p], { lr: 0.5 })
  p.grad = ones([2])
  optimizer.lr = 2
  optimizer.step()
  t.deepEqual(toNumbers(p), [-1, -1])
  optimizer.lr = NaN
  t.throws(() => optimizer.step(), expected)
})

test('a step is no part of a graph, but a graph that saved the parameter notices it', (t) => {
  const p = parameter(ones([1]))
  const y = p.mul(p)
  p.grad = ones([1])
  new SGD([p], { lr: 1 }).step()
  t.throws(() => y.backward(), { code: 'ERR_SAVED_TENSOR_MODIFIED' })
})

test.serial('steps do not leave tensors behind', (t) => {
  const p = parameter(zeros([3]))
  const optimizer = new AdamW([p])
  const step = (): void => {
    p.mul(p).sum().dispose()
    const loss = p.mul(2)
    const sum = loss.sum()
    sum.backward()
    optimizer.step()
    optimizer.zeroGrad()
    loss.dispose()
    sum.dispose()
  }
  step()
  const before = memory().cpu!.tensors
  for (let i = 0; i < 20; i++) (noGrad(() => undefined), step())
  t.true(memory().cpu!.tensors <= before + 20, 'only the forgotten products may wait for the collector')
})
