/** Recording a training step and replaying it is training, without JavaScript. */
import test from 'ava'
import {
  AdamW,
  ArgumentError,
  BatchNorm1d,
  BatchNorm2d,
  Conv2d,
  convertSyncBatchNorm,
  CrossEntropyLoss,
  cuda,
  DeviceError,
  Flatten,
  Linear,
  manualSeed,
  memory,
  noGrad,
  ones,
  parameter,
  rand,
  randn,
  ReLU,
  Sequential,
  SGD,
  Tensor,
  tensor,
  tidy,
  zeros,
  type Module,
  type Optimizer,
} from 'syncbn'

import { native } from '../../dist/native.js'
import { largestDifference, toNumbers } from '../helpers/closeness.ts'
import { DEVICE, devicesTest, onCuda } from './support.ts'

const STEPS = 5
const WARM_UP = 2
const IN_CAPTURE = { instanceOf: DeviceError, code: 'ERR_CAPTURE' }

function net(): Module {
  manualSeed(12)
  const model = new Sequential(
    new Conv2d(1, 4, 3, { padding: 1 }),
    new BatchNorm2d(4),
    new ReLU(),
    new Conv2d(4, 3, 3, { stride: 2 }),
    new BatchNorm2d(3, { momentum: null }),
    new Flatten(),
    new Linear(12, 5),
    new BatchNorm1d(5),
    new Linear(5, 3),
  )
  return convertSyncBatchNorm(model).to(DEVICE) as Module
}

/** Batches that differ, so that a replay which reads an old one is seen. */
function batch(step: number): { images: Tensor; labels: Tensor } {
  manualSeed(100 + step)
  return { images: randn([6, 1, 5, 5]).add(step / 4), labels: tensor([0n, 1n, 2n, 0n, 1n, 2n]) }
}

type MakeOptimizer = (parameters: Iterable<Tensor>) => Optimizer

const OPTIMIZERS: Record<string, MakeOptimizer> = {
  SGD: (parameters) => new SGD(parameters, { lr: 0.05, momentum: 0.9, weightDecay: 0.01 }),
  'SGD without momentum': (parameters) => new SGD(parameters, { lr: 0.05 }),
  AdamW: (parameters) => new AdamW(parameters, { lr: 0.01 }),
}

interface Run {
  losses: number[]
  state: Map<string, number[]>
  optimizer: Map<string, number[]>
}

function summary(model: Module, optimizer: Optimizer, losses: number[]): Run {
  const numbers = (state: Map<string, Tensor>) => new Map([...state].map(([key, value]) => [key, toNumbers(value)]))
  return { losses, state: numbers(model.stateDict()), optimizer: numbers(optimizer.stateDict()) }
}

/** The step, on tensors whose contents change. */
function trainer(make: MakeOptimizer) {
  const model = net()
  const optimizer = make(model.parameters())
  const criterion = new CrossEntropyLoss()
  const [images, labels] = [zeros([6, 1, 5, 5], { device: DEVICE }), zeros([6], { dtype: 'int64', device: DEVICE })]
  const load = (step: number): void => {
    const next = batch(step)
    images.copy_(next.images)
    labels.copy_(next.labels)
  }
  const step = (): Tensor => {
    optimizer.zeroGrad()
    const loss = criterion.call(model.call(images), labels)
    loss.backward()
    optimizer.step()
    return loss
  }
  return { model, optimizer, load, step }
}

/** The warm-up steps of a capture all see batch 0. */
const batchOf = (step: number): number => Math.max(0, step - WARM_UP)

function trainPlainly(make: MakeOptimizer): Run {
  const { model, optimizer, load, step } = trainer(make)
  const losses: number[] = []
  for (let i = 0; i < WARM_UP + STEPS; i += 1) {
    load(batchOf(i))
    losses.push(step().item())
  }
  return summary(model, optimizer, losses.slice(WARM_UP))
}

function trainByReplay(make: MakeOptimizer): Run {
  const { model, optimizer, load, step } = trainer(make)
  load(0)
  const captured = cuda.capture(step, { warmup: WARM_UP })
  const losses: number[] = []
  for (let i = 0; i < STEPS; i += 1) {
    load(i)
    captured.replay()
    losses.push(captured.outputs.item())
  }
  captured.dispose()
  return summary(model, optimizer, losses)
}

onCuda('recording and replaying', () => {
  test.before(() => cuda.setDevice(Number(DEVICE.slice('cuda:'.length))))

  for (const [name, make] of Object.entries(OPTIMIZERS)) {
    test.serial(`a recorded training step with ${name} trains as the plain one`, (t) => {
      const [plain, replayed] = [trainPlainly(make), trainByReplay(make)]
      t.deepEqual([...replayed.state.keys()], [...plain.state.keys()])
      t.deepEqual([...replayed.optimizer.keys()], [...plain.optimizer.keys()])
      // The same kernels on the same numbers; AdamW's powers of beta come from the host or from the device.
      const tolerance = name === 'AdamW' ? 1e-6 : 0
      t.true(largestDifference(replayed.losses, plain.losses) <= tolerance, `${replayed.losses} ${plain.losses}`)
      for (const part of ['state', 'optimizer'] as const) {
        for (const [key, expected] of plain[part]) {
          const difference = largestDifference(replayed[part].get(key)!, expected)
          t.true(difference <= tolerance, `${key}: ${difference}`)
        }
      }
      t.is(replayed.optimizer.get('state.0.step')![0], WARM_UP + STEPS)
      t.is(replayed.state.get('1.num_batches_tracked')![0], WARM_UP + STEPS)
    })
  }

  test.serial('a replay waits for nothing and copies nothing to or from the host', async (t) => {
    const { load, step } = trainer(OPTIMIZERS['AdamW']!)
    load(0)
    const captured = cuda.capture(step)
    await cuda.synchronize()
    const before = native.cudaCounts(DEVICE)
    captured.replay()
    captured.replay()
    const { hostWaits, uploads, downloads } = native.cudaCounts(DEVICE)
    t.deepEqual([hostWaits, uploads, downloads], [before.hostWaits, before.uploads, before.downloads])
    captured.dispose()
  })

  test.serial('an optimizer that steps on, saves and loads after a capture goes on where it was', (t) => {
    const [plain, recorded] = [trainer(OPTIMIZERS['AdamW']!), trainer(OPTIMIZERS['AdamW']!)]
    recorded.load(0)
    const captured = cuda.capture(recorded.step, { warmup: 1 })
    recorded.load(1)
    captured.replay()
    recorded.load(2)
    recorded.step()
    const saved = recorded.optimizer.stateDict()
    const kept = new Map([...recorded.model.stateDict()].map(([key, value]) => [key, value.clone()]))
    recorded.load(0)
    captured.replay()
    recorded.optimizer.loadStateDict(saved)
    recorded.model.loadStateDict(kept)
    recorded.load(3)
    captured.replay()
    for (const i of [0, 1, 2, 3]) {
      plain.load(i)
      plain.step()
    }
    t.is(recorded.optimizer.stateDict().get('state.0.step')!.item(), 4)
    const expected = plain.model.stateDict()
    for (const [key, value] of recorded.model.stateDict()) {
      t.true(largestDifference(value, expected.get(key)!) <= 1e-6, key)
    }
    captured.dispose()
  })

  test.serial('outputs of any structure are kept and written anew; gradients, too', (t) => {
    const x = parameter(tensor([1, 2], { device: DEVICE }))
    const factor = tensor([3, 3], { device: DEVICE })
    const captured = tidy(() =>
      cuda.capture(() => {
        x.grad = null
        const y = x.mul(factor)
        const total = y.sum()
        total.backward()
        return { y, list: [total] }
      }),
    )
    captured.replay()
    t.deepEqual(toNumbers(captured.outputs.y), [3, 6])
    t.deepEqual(toNumbers(x.grad!), [3, 3])
    factor.copy_(tensor([10, 20]))
    captured.replay()
    t.deepEqual(toNumbers(captured.outputs.y), [10, 40])
    t.is(captured.outputs.list[0]!.item(), 50)
    t.deepEqual(toNumbers(x.grad!), [10, 20])
    captured.dispose()
    captured.dispose()
    t.deepEqual(toNumbers(captured.outputs.y), [10, 40], 'the last values stay')
    t.throws(() => captured.replay(), { instanceOf: ArgumentError, code: 'ERR_DISPOSED' })
  })

  test.serial('memory that the recording writes is not handed out, whoever forgets it', (t) => {
    const x = parameter(ones([64], { device: DEVICE }))
    const captured = cuda.capture(() => x.mul(x).sum().backward(), { warmup: 1 })
    // The recording adds to this gradient; outside nobody holds it any more.
    x.grad = null
    const others = Array.from({ length: 20 }, (_, i) => ones([64], { device: DEVICE }).mul(i))
    captured.replay()
    captured.replay()
    others.forEach((other, i) => t.deepEqual(toNumbers(other), Array(64).fill(i)))
    captured.dispose()
  })

  test.serial('without zeroGrad inside, each replay adds to the gradients', (t) => {
    const x = parameter(tensor([1], { device: DEVICE }))
    const captured = cuda.capture(() => x.mul(2).backward(), { warmup: 2 })
    t.is(x.grad!.item(), 4)
    captured.replay()
    captured.replay()
    t.is(x.grad!.item(), 8)
    captured.dispose()
  })

  test.serial('two recordings live side by side', (t) => {
    const x = ones([4], { device: DEVICE })
    const double = cuda.capture(() => x.copy_(x.mul(2)), { warmup: 0 })
    const addOne = cuda.capture(() => x.copy_(x.add(1)), { warmup: 0 })
    t.deepEqual(toNumbers(x), [1, 1, 1, 1], 'recording computes nothing')
    double.replay()
    addOne.replay()
    double.replay()
    t.deepEqual(toNumbers(x), [6, 6, 6, 6])
    double.dispose()
    addOne.replay()
    t.deepEqual(toNumbers(x), [7, 7, 7, 7])
    addOne.dispose()
  })

  test.serial('what a replay could not repeat is refused inside, and everything works afterwards', (t) => {
    const x = parameter(ones([2], { device: DEVICE }))
    const refused: Record<string, () => unknown> = {
      item: () => x.sum().item(),
      dataSync: () => x.dataSync(),
      'a tensor from numbers': () => tensor([1], { device: DEVICE }),
      'a random tensor': () => rand([2], { device: DEVICE }),
      'to the CPU': () => x.to('cpu'),
      'a copy from the CPU': () => noGrad(() => x.copy_(ones([2]))),
      'a capture inside': () => cuda.capture(() => undefined),
    }
    for (const [what, fn] of Object.entries(refused)) {
      const error = t.throws(() => cuda.capture(fn, { warmup: 0 }), IN_CAPTURE, what)
      t.true((error?.message.length ?? 0) > 20, error?.message)
      t.deepEqual(toNumbers(x.add(1)), [2, 2], `after ${what}`)
    }
  })

  test.serial('an error of the function ends the recording, is thrown on, and leaves no half-made gradient', (t) => {
    const x = parameter(ones([2], { device: DEVICE }))
    tidy(() => x.mul(1).sum()).dispose()
    const before = memory()[DEVICE]!.tensors
    const failing = (): void => {
      x.mul(3).sum().backward()
      throw new Error('stop')
    }
    t.throws(() => cuda.capture(failing, { warmup: 0 }), { message: 'stop' })
    t.is(x.grad, null)
    t.is(memory()[DEVICE]!.tensors, before)
    t.throws(() => cuda.capture(failing), { message: 'stop' })
    t.deepEqual(toNumbers(x.grad!), [3, 3], 'the warm-up has computed')
    t.throws(() => cuda.capture(async () => undefined, { warmup: 0 }), { instanceOf: ArgumentError })
    t.throws(() => cuda.capture(7 as never), { instanceOf: ArgumentError })
    t.throws(() => cuda.capture(() => 1, { warmup: -1 }), { instanceOf: ArgumentError })
    const captured = cuda.capture(() => x.mul(2))
    captured.replay()
    t.deepEqual(toNumbers(captured.outputs), [2, 2])
    captured.dispose()
  })

  test.serial('an optimizer without state needs a warm-up', (t) => {
    for (const [name, make] of Object.entries(OPTIMIZERS)) {
      const p = parameter(ones([2], { device: DEVICE }))
      p.grad = ones([2], { device: DEVICE })
      const optimizer = make([p])
      const before = toNumbers(p)
      if (name === 'SGD without momentum') {
        cuda.capture(() => optimizer.step(), { warmup: 0 }).dispose()
      } else {
        t.throws(() => cuda.capture(() => optimizer.step(), { warmup: 0 }), { ...IN_CAPTURE, message: /warmup/ }, name)
      }
      t.deepEqual(toNumbers(p), before)
      if (name === 'SGD without momentum') continue
      optimizer.step()
      const once = () => cuda.capture(() => optimizer.step(), { warmup: 0 })
      // AdamW counts its steps on the device, which a plain step does not prepare.
      if (name === 'AdamW') t.throws(once, IN_CAPTURE)
      else once().dispose()
    }
  })

  devicesTest(2, 'work on another GPU is refused: a replay would leave it out', (t) => {
    const [here, other] = [DEVICE, DEVICE === 'cuda:0' ? 'cuda:1' : 'cuda:0'] as const
    const [x, y] = [ones([2], { device: here }), ones([2], { device: other })]
    t.throws(() => cuda.capture(() => [x.add(1), y.add(1)]), { ...IN_CAPTURE, message: new RegExp(other) })
    t.deepEqual(toNumbers(x.add(1)), [2, 2])
  })
})
