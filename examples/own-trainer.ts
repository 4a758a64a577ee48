/**
 * A trainer that is not ours: plain typed arrays, its own forward and its own gradients. All it takes from the library
 * is the pair `syncBatchNorm` and `syncBatchNormBackward`.
 *
 *   npx syncbn launch --nproc-per-node 2 examples/own-trainer.ts
 *
 * Fits y = 3·x̂ + 1, where x̂ is x normalized over the samples of all ranks, by gradient descent on weight and bias.
 */
import { allReduce, destroyProcessGroup, initProcessGroup, syncBatchNorm, syncBatchNormBackward } from 'syncbn'

const SAMPLES = 6
const CHANNELS = 2
const SHAPE = [SAMPLES, CHANNELS]
const SIZE = SAMPLES * CHANNELS
const STEPS = 60
const LEARNING_RATE = 0.4

const group = await initProcessGroup()

// Every rank has other samples: without the exchange, each would normalize by its own mean.
const x = Float32Array.from({ length: SIZE }, (_, i) => 10 * group.rank + Math.sin(7 * i + group.rank))
const unit = new Float32Array(CHANNELS).fill(1)
const shift = new Float32Array(CHANNELS)
const normalized = syncBatchNorm({ data: x, shape: SHAPE }, { weight: unit, bias: shift, training: true })
const wanted = normalized.output.data.map((value) => 3 * Number(value) + 1)

const weight = Float32Array.of(1, 1)
const bias = Float32Array.of(0, 0)
for (let step = 0; step < STEPS; step += 1) {
  // Forward: ours, with one exchange.
  const { output, saved } = syncBatchNorm({ data: x, shape: SHAPE }, { weight, bias, training: true })
  // The trainer's own loss, the mean of squared errors, and its gradient.
  const gradOutput = Float32Array.from(wanted, (value, i) => (2 / SAMPLES) * (Number(output.data[i]) - Number(value)))
  // Backward: ours, with one exchange. Parameter gradients are local ...
  const { gradWeight, gradBias } = syncBatchNormBackward({ data: gradOutput, shape: SHAPE }, saved)
  saved.dispose()
  // ... so the trainer averages them, and applies them.
  for (const [parameter, gradient] of [
    [weight, gradWeight],
    [bias, gradBias],
  ] as const) {
    const mean = gradient?.data as Float32Array
    await allReduce(mean, { op: 'avg' })
    parameter.forEach((value, i) => (parameter[i] = value - LEARNING_RATE * (mean[i] as number)))
  }
}
console.log(`weight ${[...weight].map((w) => w.toFixed(3))}, bias ${[...bias].map((b) => b.toFixed(3))}`)
await destroyProcessGroup()
