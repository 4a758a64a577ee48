/** Modules: registration, traversal, state, hooks, scope of a call. */
import test from 'ava'
import {
  AdaptiveAvgPool2d,
  ArgumentError,
  AvgPool2d,
  BatchNorm2d,
  Conv2d,
  CrossEntropyLoss,
  DTypeError,
  Flatten,
  Identity,
  Linear,
  MSELoss,
  MaxPool2d,
  Module,
  ReLU,
  Sequential,
  convertSyncBatchNorm,
  keep,
  manualSeed,
  memory,
  noGrad,
  ones,
  parameter,
  rand,
  randn,
  tensor,
  zeros,
  type Tensor,
} from 'syncbn'

import { largestDifference, toNumbers } from './helpers/closeness.ts'

class Block extends Module {
  conv = new Conv2d(2, 3, 3, { padding: 1, bias: false })
  bn1 = new BatchNorm2d(3)
  scale = parameter(ones([1]))
  plain = ones([1])

  override forward(x: Tensor): Tensor {
    return this.bn1.call(this.conv.call(x)).mul(this.scale)
  }
}

test('fields register themselves; keys are PyTorch’s, in PyTorch’s order', (t) => {
  const net = new Sequential(new Block(), new ReLU())
  t.deepEqual(
    [...net.stateDict().keys()],
    [
      '0.scale',
      '0.conv.weight',
      '0.bn1.weight',
      '0.bn1.bias',
      '0.bn1.running_mean',
      '0.bn1.running_var',
      '0.bn1.num_batches_tracked',
    ],
  )
  t.deepEqual(
    [...net.namedParameters()].map(([name]) => name),
    ['0.scale', '0.conv.weight', '0.bn1.weight', '0.bn1.bias'],
  )
  t.deepEqual(
    [...net.namedBuffers()].map(([name]) => name),
    ['0.bn1.running_mean', '0.bn1.running_var', '0.bn1.num_batches_tracked'],
  )
  t.deepEqual(
    [...net.namedModules()].map(([name]) => name),
    ['', '0', '0.conv', '0.bn1', '1'],
  )
})

test('what several places hold is visited once, but has all its keys', (t) => {
  const shared = new Linear(2, 2)
  const net = new Sequential(shared, new ReLU(), shared)
  t.is([...net.parameters()].length, 2)
  t.is([...net.children()].length, 2)
  t.is([...net.modules()].length, 3)
  t.deepEqual([...net.stateDict().keys()], ['0.weight', '0.bias', '2.weight', '2.bias'])
})

test('explicit registration: names are checked, buffers may be transient', (t) => {
  const net = new Identity()
  net.registerBuffer('kept', zeros([1]))
  net.registerBuffer('lost', zeros([1]), { persistent: false })
  net.registerParameter('weight', zeros([2]))
  net.registerParameter('nothing', null)
  t.deepEqual([...net.stateDict().keys()], ['weight', 'kept'])
  t.deepEqual(
    [...net.namedBuffers()].map(([name]) => name),
    ['kept', 'lost'],
  )
  t.true((net as unknown as { weight: Tensor }).weight.requiresGrad)
  for (const name of ['', 'a.b', 'forward', 'training', 'kept']) {
    t.throws(() => net.registerParameter(name, zeros([1])), { instanceOf: ArgumentError }, name)
  }
  t.throws(() => net.registerParameter('x', randn([1], { requiresGrad: true }).mul(2)), { instanceOf: ArgumentError })
  t.throws(() => net.registerParameter('x', 3 as never), { instanceOf: ArgumentError })
  t.throws(() => net.registerModule('x', {} as Module), { instanceOf: ArgumentError })
  t.throws(() => parameter(zeros([1], { dtype: 'int32' })), { instanceOf: DTypeError })
})

test('stateDict shares storage; loadStateDict copies in and converts', (t) => {
  const net = new Linear(2, 2)
  const state = net.stateDict()
  const wide = new Map([...state].map(([key, value]) => [key, value.to('float64').add(1)]))
  const { weight } = net
  t.deepEqual(net.loadStateDict(wide), { missingKeys: [], unexpectedKeys: [] })
  t.is(net.weight, weight)
  t.deepEqual(state.get('weight')!.dataSync(), net.weight.dataSync())
  t.false(state.get('weight')!.requiresGrad)
})

test('a module loads its own state, and a tensor copies itself', (t) => {
  const net = new Linear(2, 2)
  const before = net.weight.dataSync()
  net.loadStateDict(net.stateDict())
  noGrad(() => net.weight.copy_(net.weight))
  t.deepEqual(net.weight.dataSync(), before)
})

test('loadStateDict names missing and unexpected keys and shapes, and writes nothing then', (t) => {
  const net = new Linear(2, 2)
  const before = net.weight.dataSync()
  const bad = new Map([
    ['weight', ones([2, 2])],
    ['extra', ones([1])],
  ])
  const error = t.throws(() => net.loadStateDict(bad), { instanceOf: ArgumentError, code: 'ERR_STATE_DICT' } as never)
  t.regex((error as Error).message, /missing keys 'bias'.*unexpected keys 'extra'/)
  t.throws(
    () =>
      net.loadStateDict(
        new Map([
          ['weight', ones([2, 2])],
          ['bias', ones([3])],
        ]),
      ),
    { message: /'bias'.*\[2\].*\[3\]/ },
  )
  t.deepEqual(net.weight.dataSync(), before)
  t.deepEqual(net.loadStateDict(bad, { strict: false }), { missingKeys: ['bias'], unexpectedKeys: ['extra'] })
  t.deepEqual(toNumbers(net.weight), [1, 1, 1, 1])
})

test('files from before the batch counter load and keep the current count', (t) => {
  const net = new Sequential(new BatchNorm2d(2))
  net.call(randn([2, 2, 2, 2]))
  const old = new Map([...net.stateDict()].filter(([key]) => !key.endsWith('num_batches_tracked')))
  t.deepEqual(net.loadStateDict(old), { missingKeys: [], unexpectedKeys: [] })
  t.is([...net.buffers()].at(-1)!.item(), 1)
  old.delete('0.running_mean')
  t.throws(() => net.loadStateDict(old), { code: 'ERR_STATE_DICT', message: /num_batches_tracked/ })
})

test('train, eval, apply, requiresGrad_, zeroGrad', (t) => {
  const net = new Sequential(new Block(), new Linear(2, 2))
  net.eval()
  t.true([...net.modules()].every((module) => !module.training))
  net.train()
  t.true([...net.modules()].every((module) => module.training))
  const seen: string[] = []
  net.apply((module) => seen.push(module.constructor.name))
  t.deepEqual(seen, ['Conv2d', 'BatchNorm2d', 'Block', 'Linear', 'Sequential'])
  net.requiresGrad_(false)
  t.true([...net.parameters()].every((p) => !p.requiresGrad))
  t.is([...net.parameters()].length, 6)
  const linear = new Linear(1, 1)
  linear.call(ones([1, 1])).backward()
  t.truthy(linear.weight.grad)
  linear.zeroGrad()
  t.is(linear.weight.grad, null)
})

test('to converts in place: floats only, formats where they fit, gradients too', (t) => {
  const net = new Sequential(new Block())
  const before = [...net.parameters()]
  net
    .call(randn([2, 2, 4, 4]))
    .sum()
    .backward()
  net.to({ dtype: 'float64', memoryFormat: 'channelsLast' })
  t.deepEqual([...net.parameters()], before)
  t.deepEqual(
    [...net.stateDict().values()].map((x) => x.dtype),
    [...Array(6).fill('float64'), 'int64'],
  )
  const conv = [...net.parameters()][1]!
  t.is(conv.memoryFormat, 'channelsLast')
  t.is(conv.grad!.dtype, 'float64')
  t.is(conv.grad!.memoryFormat, 'channelsLast')
  t.is(net.call(randn([2, 2, 4, 4], { dtype: 'float64' })).dtype, 'float64')
  t.throws(() => net.to('int32'), { instanceOf: DTypeError })
})

test('running statistics stay float32 in half-precision layers', (t) => {
  for (const dtype of ['float16', 'bfloat16'] as const) {
    for (const layer of [new BatchNorm2d(3, { dtype }), new BatchNorm2d(3).to(dtype)]) {
      const { weight, bias, runningMean, runningVar, numBatchesTracked } = layer
      const dtypes = [weight, bias, runningMean, runningVar, numBatchesTracked].map((tensor) => tensor!.dtype)
      t.deepEqual(dtypes, [dtype, dtype, 'float32', 'float32', 'int64'])
      const synced = convertSyncBatchNorm(new Sequential(layer)).to('float64').to(dtype)
      t.is([...synced.buffers()][0]!.dtype, 'float64', 'what is more precise stays, too')
    }
  }
})

test('forward hooks see and replace the output; removal works', (t) => {
  const net = new Identity()
  const x = ones([2])
  const handle = net.registerForwardHook((module, inputs, output) => {
    t.is(module, net)
    t.is(inputs[0], x)
    return output.mul(3)
  })
  const second = net.registerForwardHook((_module, _inputs, output) => void t.deepEqual(toNumbers(output), [3, 3]))
  t.deepEqual(toNumbers(net.call(x)), [3, 3])
  handle.remove()
  second.remove()
  t.is(net.call(x), x)
  net.registerForwardHook(() => 3 as never)
  t.throws(() => net.call(x), { instanceOf: ArgumentError })
})

test('full backward hooks see both gradients and replace those of the inputs', (t) => {
  class Product extends Module {
    override forward(a: Tensor, b: Tensor): Tensor {
      return a.mul(b)
    }
  }
  const net = new Product()
  const seen: number[][] = []
  const handle = net.registerFullBackwardHook((_module, gradInput, gradOutput) => {
    seen.push([...gradInput, ...gradOutput].map((g) => g.item()))
    return gradInput.map((g) => g.mul(10))
  })
  const [a, b] = [tensor([2], { requiresGrad: true }), tensor([5], { requiresGrad: true })]
  net.call(a, b).mul(3).backward()
  t.deepEqual(seen, [[15, 6, 3]])
  t.deepEqual([a.grad!.item(), b.grad!.item()], [150, 60])
  handle.remove()
  net.call(a, b).backward()
  t.is(a.grad!.item(), 155)
  net.registerFullBackwardHook(() => [])
  t.throws(() => net.call(a, b).backward(), { instanceOf: ArgumentError })
})

test('a full backward hook runs where no input needs a gradient', (t) => {
  const net = new Linear(1, 1)
  const seen: number[] = []
  net.registerFullBackwardHook(
    (_module, gradInput, gradOutput) => void seen.push(gradInput.length, gradOutput[0]!.item()),
  )
  net
    .call(ones([1, 1]))
    .mul(4)
    .backward()
  t.deepEqual(seen, [0, 4])
})

test.serial('a call releases what it made and did not return', (t) => {
  const net = new Sequential(new Linear(4, 4), new ReLU(), new Linear(4, 2))
  const x = randn([3, 4])
  const before = memory().cpu!.tensors
  const output = noGrad(() => net.call(x))
  t.is(memory().cpu!.tensors, before + 1)
  output.dispose()
  let kept: Tensor | undefined
  class Keeper extends Module {
    lost: Tensor | null = null
    override forward(y: Tensor): Tensor {
      kept = keep(y.mul(2))
      this.lost = y.mul(3)
      return y.mul(4)
    }
  }
  const keeper = new Keeper()
  keeper.call(x).dispose()
  t.false(kept!.disposed)
  t.true(keeper.lost!.disposed)
  t.throws(
    () =>
      new (class extends Module {
        override forward(): Tensor {
          return 1 as never
        }
      })().call(),
    { instanceOf: ArgumentError },
  )
})

test('initial values are PyTorch’s draws in PyTorch’s order', (t) => {
  manualSeed(0)
  const linear = new Linear(4, 3)
  const conv = new Conv2d(4, 6, [2, 3], { groups: 2 })
  manualSeed(0)
  const expect = (shape: number[], fanIn: number) =>
    rand(shape)
      .mul(2 / Math.sqrt(fanIn))
      .sub(1 / Math.sqrt(fanIn))
  for (const [actual, shape, fanIn] of [
    [linear.weight, [3, 4], 4],
    [linear.bias!, [3], 4],
    [conv.weight, [6, 2, 2, 3], 12],
    [conv.bias!, [6], 12],
  ] as [Tensor, number[], number][]) {
    t.deepEqual([...actual.shape], shape)
    const difference = largestDifference(actual, expect(shape, fanIn))
    t.true(difference <= 1e-7, `${difference}`)
  }
})

test('layers compute what their functions do', (t) => {
  const x = randn([2, 4, 6, 6])
  const net = new Sequential(
    new Conv2d(4, 8, 3, { stride: 2, padding: 1, groups: 2 }),
    new MaxPool2d(2, { stride: 1 }),
    new AvgPool2d(2),
    new AdaptiveAvgPool2d(1),
    new Flatten(),
    new Linear(8, 3),
  )
  const output = net.call(x)
  t.deepEqual([...output.shape], [2, 3])
  t.deepEqual([...new Flatten({ startDim: 0 }).call(x).shape], [288])
  t.true(new CrossEntropyLoss().call(output, tensor([0n, 2n])).item() > 0)
  t.is(new MSELoss({ reduction: 'sum' }).call(output, output.detach()).item(), 0)
  t.throws(() => new Flatten({ startDim: 4 }).call(x), { instanceOf: ArgumentError })
  t.throws(() => new CrossEntropyLoss({ reduction: 'avg' as never }), { instanceOf: ArgumentError })
})

test('constructor arguments are checked', (t) => {
  t.throws(() => new Linear(0, 1), { instanceOf: ArgumentError })
  t.throws(() => new Linear(1, 1, { dtype: 'int64' }), { instanceOf: DTypeError })
  t.throws(() => new Conv2d(3, 4, 3, { groups: 2 }), { instanceOf: ArgumentError })
  t.throws(() => new Conv2d(3, 3, 0), { instanceOf: ArgumentError })
  t.throws(() => new Conv2d(3, 3, [1, 2, 3] as never), { instanceOf: ArgumentError })
  t.throws(() => new Sequential({} as Module), { instanceOf: ArgumentError })
})
