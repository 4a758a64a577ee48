/** convertSyncBatchNorm and revertSyncBatchNorm. */
import test from 'ava'
import {
  ArgumentError,
  BatchNorm1d,
  BatchNorm2d,
  BatchNormBase,
  Identity,
  Linear,
  Module,
  ReLU,
  Sequential,
  SyncBatchNorm,
  convertSyncBatchNorm,
  randn,
  revertSyncBatchNorm,
  type Tensor,
} from 'syncbn'

import { toNumbers } from './helpers/closeness.ts'

const FIELDS = [
  'weight',
  'bias',
  'runningMean',
  'runningVar',
  'numBatchesTracked',
  'eps',
  'momentum',
  'affine',
  'trackRunningStats',
  'numFeatures',
  'training',
] as const

test('layers are replaced in place; everything they hold stays the same object', (t) => {
  const bn = new BatchNorm2d(3, { eps: 1e-3, momentum: null, dtype: 'float64' }).eval()
  bn.weight!.requiresGrad = false
  const net = new Sequential(
    new ReLU(),
    new Sequential(bn),
    new BatchNorm1d(2, { affine: false, trackRunningStats: false }),
  )
  const keys = [...net.stateDict().keys()]
  t.is(convertSyncBatchNorm(net), net)
  const [, converted, bare] = [...net.modules()].filter((m) => m instanceof SyncBatchNorm || m === net) as [
    Module,
    SyncBatchNorm,
    SyncBatchNorm,
  ]
  t.true(converted instanceof SyncBatchNorm && bare instanceof SyncBatchNorm)
  for (const field of FIELDS) t.is(converted[field], bn[field], field)
  t.false(converted.weight!.requiresGrad)
  t.is(bare.weight, null)
  t.is(bare.runningMean, null)
  t.deepEqual([...net.stateDict().keys()], keys)
})

test('a root that is a batch norm gives a new module', (t) => {
  const bn = new BatchNorm1d(3)
  const sync = convertSyncBatchNorm(bn)
  t.true(sync instanceof SyncBatchNorm)
  t.is(sync.weight, bn.weight)
})

test('a layer in several places stays one, in one parent and in two', (t) => {
  const bn = new BatchNorm1d(3)
  const net = new Sequential(bn, bn, new Sequential(bn))
  convertSyncBatchNorm(net)
  const found = [...net.modules()].filter((m) => m instanceof BatchNormBase)
  t.is(found.length, 1)
  t.true(found[0] instanceof SyncBatchNorm)
  const places = [(net as unknown as Module[])[0], (net as unknown as Module[])[1]]
  t.deepEqual(places, [found[0], found[0]])
  t.is([...net.stateDict().keys()].length, 15)
})

test('hooks go along, and their handles still remove them', (t) => {
  const bn = new BatchNorm1d(2)
  let calls = 0
  const handle = bn.registerForwardHook(() => void (calls += 1))
  const net = convertSyncBatchNorm(new Sequential(bn)) as Sequential
  net.call(randn([4, 2]))
  t.is(calls, 1)
  handle.remove()
  net.call(randn([4, 2]))
  t.is(calls, 1)
})

class Tagged extends BatchNorm1d {
  tag = 'mine'
  inner = new Identity()
}

test('further fields and submodules of a layer go along and come back', (t) => {
  const net = new Sequential(new Tagged(2))
  convertSyncBatchNorm(net)
  const sync = (net as unknown as (SyncBatchNorm & Tagged)[])[0]!
  t.is(sync.constructor, SyncBatchNorm)
  t.is(sync.tag, 'mine')
  t.true(sync.inner instanceof Identity)
  sync.tag = 'changed'
  revertSyncBatchNorm(net)
  const back = (net as unknown as Tagged[])[0]!
  t.is(back.constructor, Tagged)
  t.is(back.tag, 'changed')
  t.false('processGroup' in back)
})

class Activated extends BatchNorm1d {
  override forward(x: Tensor): Tensor {
    return super.forward(x).mul(2)
  }
}

test('a class that overrides forward is refused by name and path, before any change', (t) => {
  const net = new Sequential(new BatchNorm1d(2), new Sequential(new Activated(2)))
  t.throws(() => convertSyncBatchNorm(net), {
    instanceOf: ArgumentError,
    code: 'ERR_CONVERT',
    message: /Activated.*'1\.0'.*forward/,
  })
  t.true([...net.modules()].every((m) => !(m instanceof SyncBatchNorm)))
  t.throws(() => convertSyncBatchNorm({} as Module), { instanceOf: ArgumentError })
  t.throws(() => convertSyncBatchNorm(net, 3 as never), { instanceOf: ArgumentError })
})

test('existing SyncBatchNorm layers get the new group', (t) => {
  const group = { rank: 0, size: 1, ranks: [0], backend: 'tcp', timeout: 1 } as const
  const net = convertSyncBatchNorm(new Sequential(new SyncBatchNorm(2), new BatchNorm1d(2)), group) as Sequential
  for (const m of net.children()) t.is((m as SyncBatchNorm).processGroup, group)
  convertSyncBatchNorm(net)
  for (const m of net.children()) t.is((m as SyncBatchNorm).processGroup, null)
})

test('revert restores the very layer with what training changed; direct ones become batch norm of any rank', (t) => {
  const bn = new BatchNorm1d(2)
  const net = new Sequential(bn, new SyncBatchNorm(2), new Linear(2, 2))
  convertSyncBatchNorm(net)
  net.call(randn([4, 2]))
  net.eval()
  t.is(revertSyncBatchNorm(net), net)
  const [first, second] = [...net.children()] as BatchNormBase[]
  t.is(first, bn)
  t.is(bn.numBatchesTracked!.item(), 1)
  t.false(bn.training)
  t.false(second instanceof SyncBatchNorm)
  t.is(second!.numBatchesTracked!.item(), 1)
  for (const shape of [
    [3, 2],
    [3, 2, 2],
    [3, 2, 1, 1, 2],
  ])
    t.notThrows(() => second!.call(randn(shape)))
  const root = convertSyncBatchNorm(bn)
  t.is(revertSyncBatchNorm(root), bn)
})

test('one process: converted and plain layers compute the same bits', (t) => {
  const plain = new BatchNorm2d(3)
  const sync = convertSyncBatchNorm(new BatchNorm2d(3))
  for (const layer of [plain, sync]) layer.loadStateDict(new BatchNorm2d(3).stateDict())
  for (let step = 0; step < 3; step++) {
    const x = randn([4, 3, 5, 2])
    t.deepEqual(toNumbers(sync.call(x)), toNumbers(plain.call(x)))
  }
  t.deepEqual(toNumbers(sync.runningVar!), toNumbers(plain.runningVar!))
})
