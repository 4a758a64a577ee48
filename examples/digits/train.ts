/**
 * Trains the network on the digits, on as many ranks as it is started with. The numbered steps are all that several
 * ranks add to an ordinary training program.
 *
 *   npx syncbn launch --nproc-per-node 4 examples/digits/train.ts --norm sync --batch-size 2 --out result
 *
 * --norm sync|local   statistics over all ranks, or each rank's own (default sync)
 * --batch-size N      samples per rank and step (default 2)
 * --epochs N          passes over the training images (default 3)
 * --out PATH          rank 0 writes PATH.json (see `TrainingResult`) and PATH.safetensors (the trained module)
 * --progress          rank 0 writes a line of JSON (see `Progress`) from time to time instead of text
 */
import { writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'

import {
  allReduce,
  barrier,
  convertSyncBatchNorm,
  CrossEntropyLoss,
  DataLoader,
  destroyProcessGroup,
  DistributedDataParallel,
  DistributedSampler,
  getLocalRank,
  initProcessGroup,
  manualSeed,
  noGrad,
  saveSafetensors,
  SGD,
  tidy,
  type Module,
  type Tensor,
} from 'syncbn'

import { loadDigits, type Sample } from './data.ts'
import { digitsNet } from './net.ts'

const SEED = 1
const LEARNING_RATE = 0.002
const MOMENTUM = 0.9
const STEPS_PER_REPORT = 10
const TEST_BATCH = 180

/** What rank 0 writes at the end. */
export interface TrainingResult {
  ranks: number
  batchSize: number
  /** Of every step, the mean over all ranks. */
  losses: number[]
  /** Part of the test images that are recognized. */
  accuracy: number
  seconds: number
}

/** What rank 0 says on the way. */
export interface Progress {
  step: number
  steps: number
  loss: number
}

interface Batch {
  image: Tensor // (N, 1, 8, 8)
  label: Tensor // (N)
}

const { values: options } = parseArgs({
  options: {
    norm: { type: 'string', default: 'sync' },
    'batch-size': { type: 'string', default: '2' },
    epochs: { type: 'string', default: '3' },
    out: { type: 'string' },
    progress: { type: 'boolean', default: false },
  },
})
const batchSize = Number(options['batch-size'])
const epochs = Number(options.epochs)

// 1. The launcher gave every process its number; with GPUs, it would choose the device.
const localRank = getLocalRank()

// 2. Meet the other ranks.
const group = await initProcessGroup()

// 3. Batch norm over all ranks instead of each one's few samples.
manualSeed(SEED)
const plain: Module = digitsNet()
const net = options.norm === 'sync' ? convertSyncBatchNorm(plain) : plain

// 4. Equal weights at the start, averaged gradients ever after.
const model = new DistributedDataParallel(net)

// 5. Every rank trains on its own part of the images.
const { training, test } = loadDigits()
const sampler = new DistributedSampler(training, { seed: SEED })
const loader = new DataLoader<Sample, Batch>(training, { batchSize, sampler, dropLast: true })

// 6. Start it with `npx syncbn launch --nproc-per-node 4`, see above.
const start = performance.now()
const losses = await train(model)
const seconds = (performance.now() - start) / 1000
await allReduce(losses, { op: 'avg' })
if (group.rank === 0) await finish(model.module, losses)
await barrier()
await destroyProcessGroup()

async function train(model: Module): Promise<Float32Array> {
  const criterion = new CrossEntropyLoss()
  const optimizer = new SGD(model.parameters(), { lr: LEARNING_RATE, momentum: MOMENTUM })
  const losses = new Float32Array(epochs * loader.length)
  let step = 0
  for (let epoch = 0; epoch < epochs; epoch += 1) {
    sampler.setEpoch(epoch)
    for await (const { image, label } of loader) {
      optimizer.zeroGrad()
      losses[step] = tidy(() => {
        const loss = criterion.call(model.call(image), label)
        loss.backward()
        return loss.item()
      })
      optimizer.step()
      step += 1
      if (step % STEPS_PER_REPORT === 0) report({ step, steps: losses.length, loss: losses[step - 1] as number })
    }
  }
  return losses
}

function report(progress: Progress): void {
  if (localRank !== 0) return
  const text = `step ${progress.step} of ${progress.steps}, loss ${progress.loss.toFixed(4)}`
  console.log(options.progress ? JSON.stringify(progress) : text)
}

async function accuracy(net: Module): Promise<number> {
  net.eval()
  let correct = 0
  for await (const { image, label } of new DataLoader<Sample, Batch>(test, { batchSize: TEST_BATCH })) {
    const labels = label.dataSync() as BigInt64Array
    const predicted = noGrad(() => tidy(() => net.call(image).argmax(1).dataSync())) as BigInt64Array
    correct += labels.filter((digit, i) => digit === predicted[i]).length
  }
  return correct / test.length
}

async function finish(net: Module, losses: Float32Array): Promise<void> {
  const result: TrainingResult = {
    ranks: group.size,
    batchSize,
    losses: [...losses],
    accuracy: await accuracy(net),
    seconds,
  }
  if (!options.progress) console.log(`test accuracy ${(100 * result.accuracy).toFixed(2)} %`)
  if (options.out === undefined) return
  await saveSafetensors(`${options.out}.safetensors`, net.stateDict())
  writeFileSync(`${options.out}.json`, JSON.stringify(result))
}
