/** Tensors, modules and files on a GPU: making, moving, reading, foreign memory, and what is refused. */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { inspect } from 'node:util'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

import test from 'ava'
import {
  AdamW,
  ArgumentError,
  AutogradError,
  BatchNorm2d,
  Conv2d,
  convertSyncBatchNorm,
  cuda,
  DataLoader,
  DeviceError,
  Flatten,
  Linear,
  loadSafetensors,
  manualSeed,
  memory,
  noGrad,
  ones,
  parameter,
  rand,
  randn,
  revertSyncBatchNorm,
  saveSafetensors,
  Sequential,
  SGD,
  ShapeError,
  SyncBatchNorm,
  arange,
  full,
  tensor,
  Tensor,
  tidy,
  zeros,
  type DType,
} from 'syncbn'

import { toNumbers } from '../helpers/closeness.ts'
import { DEVICE, devicesTest, onCuda } from './support.ts'

const DTYPES: readonly DType[] = ['float32', 'float64', 'float16', 'bfloat16', 'int32', 'int64']
const WRONG_DEVICE = { instanceOf: DeviceError, code: 'ERR_DEVICE' }

/** A full collection, in a process that was started without a flag for it. */
function collectGarbage(): void {
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc') as () => void
  collect()
}

/** In a function of its own, so that nothing else holds the owner. */
function viewWithOwner({ ptr }: Tensor): { view: Tensor; owner: WeakRef<object> } {
  const owner = { name: 'owner' }
  const view = Tensor.fromPointer({ ptr, shape: [2, 3], dtype: 'float32', device: DEVICE, owner })
  return { view, owner: new WeakRef(owner) }
}

onCuda('tensors on a GPU', () => {
  test('there is a GPU', (t) => {
    t.true(cuda.isAvailable())
    t.true(cuda.deviceCount() > Number(DEVICE.slice('cuda:'.length)))
  })

  test('everything that makes tensors makes them there, with the values of the CPU', (t) => {
    const options = { device: DEVICE }
    const makers: ((options: object) => Tensor)[] = [
      (o) => tensor([[1, 2], [3, 4]], o), // prettier-ignore
      (o) => tensor(BigInt64Array.of(1n, 2n ** 60n), o),
      (o) => zeros([2, 3], o),
      (o) => ones([2], { dtype: 'int64', ...o }),
      (o) => full([3], 2.5, { dtype: 'bfloat16', ...o }),
      (o) => arange(5, o),
      (o) => (manualSeed(7), rand([40], o)),
      (o) => (manualSeed(7), randn([40], { dtype: 'float64', ...o })),
      (o) => zeros([0, 4], o),
      (o) => tensor(3, o),
    ]
    for (const make of makers) {
      const [here, there] = [make({}), make(options)]
      t.is(there.device, DEVICE)
      t.is(there.dtype, here.dtype)
      t.deepEqual([...there.shape], [...here.shape])
      t.deepEqual(there.dataSync({ raw: true }), here.dataSync({ raw: true }))
    }
    t.true(zeros([2], { ...options, requiresGrad: true }).requiresGrad)
  })

  test('every dtype and format goes there and back bit for bit', (t) => {
    manualSeed(3)
    for (const dtype of DTYPES) {
      const source = randn([2, 3, 4, 5]).mul(100).to({ dtype, memoryFormat: 'channelsLast' })
      const there = source.to(DEVICE)
      t.is(there.memoryFormat, 'channelsLast')
      t.is(there.dtype, dtype)
      t.deepEqual(there.to('cpu').dataSync({ raw: true }), source.dataSync({ raw: true }), dtype)
      t.deepEqual(there.dataSync({ raw: true }), source.dataSync({ raw: true }), dtype)
      const changed = source.to({ device: DEVICE, dtype: 'float32', memoryFormat: 'contiguous' })
      t.deepEqual(changed.dataSync(), source.to('float32').dataSync(), dtype)
    }
  })

  test('to where a tensor is shares its storage', (t) => {
    const x = ones([2], { device: DEVICE })
    x.to(DEVICE).fill_(4)
    t.deepEqual(toNumbers(x), [4, 4])
    t.is(x.to(DEVICE).ptr, x.ptr)
    t.not(x.clone().ptr, x.ptr)
  })

  test('a gradient goes back to where its tensor is', (t) => {
    const here = tensor([1, 2], { requiresGrad: true })
    const there = here.to(DEVICE)
    there.mul(there).to('cpu').mul(3).sum().backward()
    t.is(here.grad!.device, 'cpu')
    t.deepEqual(toNumbers(here.grad!), [6, 12])
    const leaf = tensor([5], { device: DEVICE, requiresGrad: true })
    leaf.to({ device: 'cpu', dtype: 'float64' }).mul(2).backward()
    t.is(leaf.grad!.device, DEVICE)
    t.is(leaf.grad!.dtype, 'float32')
    t.is(leaf.grad!.item(), 2)
  })

  test('copy_ and fill_ cross devices, and what was saved notices', (t) => {
    const there = zeros([2], { device: DEVICE })
    there.copy_(tensor(Float64Array.of(1, 2)))
    t.deepEqual(toNumbers(there), [1, 2])
    const here = zeros([2], { dtype: 'float64' })
    here.copy_(there)
    t.deepEqual(toNumbers(here), [1, 2])
    t.throws(() => there.copy_(zeros([3])), { instanceOf: ShapeError })
    const leaf = ones([2], { device: DEVICE, requiresGrad: true })
    const y = leaf.mul(there)
    there.fill_(0)
    t.throws(() => y.sum().backward(), { instanceOf: AutogradError, code: 'ERR_SAVED_TENSOR_MODIFIED' })
  })

  test('data gives the values at the time of the call and lets the event loop go on', async (t) => {
    const x = tensor([1, 2], { device: DEVICE })
    const reading = x.data()
    x.fill_(9)
    x.dispose()
    t.deepEqual(await reading, Float32Array.of(1, 2))
    t.deepEqual(await tensor([1.5], { dtype: 'float16', device: DEVICE }).data({ raw: true }), Uint16Array.of(0x3e00))
  })

  test('a description names the device', (t) => {
    t.is(inspect(zeros([2, 3], { device: DEVICE })), `Tensor(float32 [2, 3], ${DEVICE})`)
  })

  test('operands on different devices are an error, and nothing happens', (t) => {
    const [here, there] = [ones([2, 2]), ones([2, 2], { device: DEVICE })]
    t.throws(() => here.add(there), WRONG_DEVICE)
    t.throws(() => there.matmul(here), { ...WRONG_DEVICE, message: /cpu.*cuda|cuda.*cpu/ })
    t.throws(() => new Linear(2, 2).call(there), WRONG_DEVICE)
    const layer = new BatchNorm2d(2).to(DEVICE)
    t.throws(() => layer.call(ones([2, 2, 2, 2])), WRONG_DEVICE)
    t.is(layer.numBatchesTracked!.item(), 0)
    const leaf = zeros([2, 2], { device: DEVICE, requiresGrad: true })
    t.throws(() => leaf.mul(2).backward(here), WRONG_DEVICE)
    t.throws(() => {
      leaf.grad = here
    }, WRONG_DEVICE)
    t.is(leaf.grad, null)
    const p = parameter(ones([2], { device: DEVICE }))
    p.grad = ones([2], { device: DEVICE })
    const optimizer = new SGD([p], { lr: 1, momentum: 0.5 })
    optimizer.step()
    t.deepEqual(toNumbers(p), [0, 0])
  })

  test('devices that are not there are refused before anything is done', (t) => {
    const missing = `cuda:${cuda.deviceCount()}` as const
    manualSeed(5)
    const expected = rand([4]).dataSync()
    manualSeed(5)
    const net = new Sequential(new Conv2d(1, 1, 1).requiresGrad_(false))
    manualSeed(5)
    for (const device of [missing, 'cuda:99999999999', 'cuda', 'gpu:0'] as string[] as 'cpu'[]) {
      t.throws(() => zeros([1], { device }), WRONG_DEVICE)
      t.throws(() => rand([4], { device }), WRONG_DEVICE)
      t.throws(() => new Linear(2, 2, { device }), WRONG_DEVICE)
      t.throws(() => new Conv2d(2, 2, 1, { device }), WRONG_DEVICE)
      t.throws(() => new SyncBatchNorm(2, { device }), WRONG_DEVICE)
      t.throws(() => net.to({ device, dtype: 'float64' }), WRONG_DEVICE)
      t.throws(() => zeros([1]).to(device), WRONG_DEVICE)
    }
    t.deepEqual(rand([4]).dataSync(), expected, 'nothing was drawn')
    t.true([...net.parameters()].every((p) => p.dtype === 'float32' && p.device === 'cpu'))
    t.throws(() => cuda.setDevice(cuda.deviceCount()), { ...WRONG_DEVICE, message: /expected the index of a GPU/ })
    t.throws(() => cuda.setDevice(-1), WRONG_DEVICE)
    t.throws(() => cuda.setDevice(0.5), WRONG_DEVICE)
    t.throws(() => cuda.memoryStats('cpu'), WRONG_DEVICE)
  })

  test('layers start with the same numbers on every device', (t) => {
    manualSeed(2)
    const here = [new Linear(3, 4), new Conv2d(2, 4, 3), new SyncBatchNorm(3)]
    manualSeed(2)
    const options = { device: DEVICE }
    const there = [new Linear(3, 4, options), new Conv2d(2, 4, 3, options), new SyncBatchNorm(3, options)]
    there.forEach((layer, i) => {
      const expected = here[i]!.stateDict()
      for (const [key, value] of layer.stateDict()) {
        t.is(value.device, DEVICE)
        t.deepEqual(value.dataSync(), expected.get(key)!.dataSync(), key)
      }
    })
  })

  test('a module moves in place: parameters, buffers, gradients and optimizer state', (t) => {
    manualSeed(4)
    const net = new Sequential(new Conv2d(1, 2, 3), new BatchNorm2d(2), new Flatten(), new Linear(8, 1))
    const before = [...net.parameters(), ...net.buffers()]
    const optimizers = [
      new SGD(net.parameters(), { lr: 0.01, momentum: 0.9 }),
      new AdamW(net.parameters(), { lr: 0.001 }),
    ]
    const step = (device: 'cpu'): void => {
      net
        .call(randn([3, 1, 4, 4], { device }))
        .sum()
        .backward()
      optimizers.forEach((optimizer) => optimizer.step())
    }
    step('cpu')
    net.to(DEVICE)
    t.deepEqual([...net.parameters(), ...net.buffers()], before)
    t.true(before.every((x) => x.device === DEVICE))
    t.true([...net.parameters()].every((x) => x.grad!.device === DEVICE))
    step(DEVICE as 'cpu')
    t.is(before[0]!.device, DEVICE)
    for (const optimizer of optimizers) {
      const state = optimizer.stateDict()
      t.is(state.get('state.0.step')!.item(), 2)
      t.is([...state.values()].filter((x) => x.device === DEVICE && x.numel > 1).length > 0, true)
    }
    net.to({ device: 'cpu', dtype: 'float64' })
    t.true(before.every((x) => x.device === 'cpu'))
  })

  test('a conversion to SyncBatchNorm and back keeps the device', (t) => {
    const net = new Sequential(new BatchNorm2d(2), new BatchNorm2d(2)).to(DEVICE)
    const tensors = [...net.parameters(), ...net.buffers()]
    convertSyncBatchNorm(net)
    t.deepEqual([...net.parameters(), ...net.buffers()], tensors)
    revertSyncBatchNorm(net)
    t.true([...net.parameters(), ...net.buffers()].every((x, i) => x === tensors[i] && x.device === DEVICE))
  })

  test('state dicts and files cross devices', async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'syncbn-cuda-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    const path = join(folder, 'net.safetensors')
    const [here, there] = [new Linear(3, 2), new Linear(3, 2, { device: DEVICE })]
    const { weight } = there
    await saveSafetensors(path, there.stateDict())
    for (const [key, value] of await loadSafetensors(path)) {
      t.is(value.device, 'cpu')
      t.deepEqual(value.dataSync(), there.stateDict().get(key)!.dataSync())
    }
    const loaded = await loadSafetensors(path, { device: DEVICE })
    t.true([...loaded.values()].every((x) => x.device === DEVICE))
    here.loadStateDict(loaded)
    t.deepEqual(here.weight.dataSync(), there.weight.dataSync())
    t.is(here.weight.device, 'cpu')
    noGrad(() => here.weight.fill_(3))
    there.loadStateDict(here.stateDict())
    t.is(there.weight, weight)
    t.deepEqual(toNumbers(there.weight), Array(6).fill(3))
    const missing = `cuda:${cuda.deviceCount()}` as const
    await t.throwsAsync(loadSafetensors(path, { device: missing }), WRONG_DEVICE)
  })

  test('a loader’s batches are on the CPU unless the dataset’s tensors are not', async (t) => {
    const there = [0, 1, 2].map((i) => full([2], i, { device: DEVICE }))
    const dataset = { length: 3, get: (index: number) => ({ x: there[index]!, y: index }) }
    for await (const batch of new DataLoader(dataset, { batchSize: 3, pinMemory: true })) {
      const { x, y } = batch as unknown as { x: Tensor; y: Tensor }
      t.is(x.device, DEVICE)
      t.deepEqual(toNumbers(x), [0, 0, 1, 1, 2, 2])
      t.is(y.device, 'cpu')
      t.deepEqual(toNumbers(y.to(DEVICE)), [0, 1, 2])
    }
  })

  test.serial('memory counts what lives on each device, and disposing gives it back', (t) => {
    const before = memory()[DEVICE]?.tensors ?? 0
    const x = zeros([1024], { device: DEVICE })
    t.is(memory()[DEVICE]!.tensors, before + 1)
    t.true(cuda.memoryStats(DEVICE).allocatedBytes >= 4096)
    t.true(cuda.memoryStats(DEVICE).peakBytes >= cuda.memoryStats(DEVICE).allocatedBytes)
    t.true(cuda.memoryStats(DEVICE).reservedBytes >= 4096)
    tidy(() => void x.add(x).mul(2))
    t.is(memory()[DEVICE]!.tensors, before + 1)
    x.dispose()
    x.dispose()
    t.is(memory()[DEVICE]!.tensors, before)
    for (const use of [() => x.ptr, () => x.add(1), () => x.to('cpu'), () => x.dataSync(), () => x.device]) {
      t.throws(use, { instanceOf: ArgumentError, code: 'ERR_DISPOSED' })
    }
  })

  test.serial('a training loop without tidy holds its memory', async (t) => {
    const net = new Sequential(new Conv2d(1, 2, 3), new BatchNorm2d(2), new Flatten(), new Linear(8, 1)).to(DEVICE)
    const optimizer = new AdamW(net.parameters())
    const counts: number[] = []
    for (let step = 0; step < 150; step += 1) {
      const images = randn([2, 1, 4, 4], { device: DEVICE })
      const output = net.call(images)
      const loss = output.sum()
      optimizer.zeroGrad()
      loss.backward()
      optimizer.step()
      for (const x of [images, output, loss]) x.dispose()
      if (step % 50 === 49) counts.push(memory()[DEVICE]!.tensors)
    }
    t.true(counts[2]! <= counts[0]!, `tensors after 50, 100, 150 steps: ${counts}`)
  })

  test.serial('memory of another library is used in place and keeps its owner', async (t) => {
    const source = tensor([1, 2, 3, 4, 5, 6], { device: DEVICE })
    const { view, owner } = viewWithOwner(source)
    t.deepEqual(toNumbers(view), [1, 2, 3, 4, 5, 6])
    view.fill_(7)
    t.deepEqual(toNumbers(source), Array(6).fill(7))
    // A reference that was looked at holds its object until the end of the turn.
    const collect = async (): Promise<void> => {
      await new Promise((resolve) => setImmediate(resolve))
      collectGarbage()
    }
    await collect()
    t.true(owner.deref() !== undefined, 'the owner lives as long as the tensor')
    view.dispose()
    t.deepEqual(toNumbers(source), Array(6).fill(7), 'disposing a view frees nothing')
    const again = Tensor.fromPointer({
      ptr: Number(source.ptr),
      shape: [6],
      dtype: 'float32',
      device: DEVICE,
      stream: 0,
    })
    t.deepEqual(toNumbers(again.add(1)), Array(6).fill(8))
    await collect()
    t.true(owner.deref() === undefined, 'and no longer')
  })

  test('foreign memory that cannot be is refused', (t) => {
    const source = { ptr: 0x1000n, shape: [2], dtype: 'float32', device: DEVICE } as const
    const { ptr } = ones([4], { device: DEVICE })
    t.throws(() => Tensor.fromPointer(source), { ...WRONG_DEVICE, message: /does not know/ })
    t.throws(() => Tensor.fromPointer({ ...source, ptr, device: 'cpu' }), WRONG_DEVICE)
    t.throws(() => Tensor.fromPointer({ ...source, ptr: ptr + 2n }), { instanceOf: ArgumentError })
    t.throws(() => Tensor.fromPointer({ ...source, ptr: -1n }), { instanceOf: ArgumentError })
    t.throws(() => Tensor.fromPointer({ ...source, ptr: 0.5 }), { instanceOf: ArgumentError })
    t.throws(() => Tensor.fromPointer({ ...source, ptr, stream: -1 }), { instanceOf: ArgumentError })
    t.throws(() => Tensor.fromPointer({ ...source, ptr, shape: [1.5] }), { instanceOf: ArgumentError })
    t.throws(() => ones([1]).ptr, WRONG_DEVICE)
  })

  devicesTest(2, 'two devices: copies, gradients, and their own memory', async (t) => {
    const [first, second] = [tensor([1, 2], { device: 'cuda:0', requiresGrad: true }), ones([2], { device: 'cuda:1' })]
    const there = first.to('cuda:1')
    t.deepEqual(toNumbers(there), [1, 2])
    there.mul(3).add(second).sum().backward()
    t.is(first.grad!.device, 'cuda:0')
    t.deepEqual(toNumbers(first.grad!), [3, 3])
    t.throws(() => first.add(second), { ...WRONG_DEVICE, message: /cuda:0.*cuda:1/ })
    const source = { ptr: second.ptr, shape: [2], dtype: 'float32', device: 'cuda:0' } as const
    t.throws(() => Tensor.fromPointer(source), { ...WRONG_DEVICE, message: /cuda:1/ })
    cuda.setDevice(1)
    t.teardown(() => cuda.setDevice(0))
    t.is(cuda.currentDevice(), 1)
    await cuda.synchronize()
    const before = cuda.memoryStats()
    const big = zeros([1 << 12], { device: 'cuda:1' })
    t.is(cuda.memoryStats().allocatedBytes - before.allocatedBytes, 4 << 12)
    t.is(cuda.memoryStats('cuda:1').allocatedBytes, cuda.memoryStats().allocatedBytes)
    big.dispose()
  })
})
