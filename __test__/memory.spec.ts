/** A long training loop without tidy or dispose holds its memory. */
import { setImmediate } from 'node:timers/promises'
import test from 'ava'
import {
  AdaptiveAvgPool2d,
  BatchNorm2d,
  Conv2d,
  CrossEntropyLoss,
  Flatten,
  Linear,
  ReLU,
  SGD,
  Sequential,
  memory,
  randn,
  tensor,
} from 'syncbn'

const STEPS = 10_000
const WARM_UP = 500
const EVERY = 50
const MEBIBYTE = 1024 * 1024
/** What the whole loop may gain after the warm-up, from the fitted line. */
const GROWTH = 16 * MEBIBYTE

/** The slope of the least-squares line through (x, y). */
function slope(points: readonly (readonly [number, number])[]): number {
  const mean = (index: 0 | 1) => points.reduce((sum, point) => sum + point[index], 0) / points.length
  const [mx, my] = [mean(0), mean(1)]
  const covariance = points.reduce((sum, [x, y]) => sum + (x - mx) * (y - my), 0)
  return covariance / points.reduce((sum, [x]) => sum + (x - mx) ** 2, 0)
}

test('10,000 steps: resident and native memory stay flat', async (t) => {
  t.timeout(280_000)
  const net = new Sequential(
    new Conv2d(1, 8, 3, { padding: 1 }),
    new BatchNorm2d(8),
    new ReLU(),
    new AdaptiveAvgPool2d(1),
    new Flatten(),
    new Linear(8, 4),
  )
  const optimizer = new SGD(net.parameters(), { lr: 0.01, momentum: 0.9 })
  const criterion = new CrossEntropyLoss()
  const resident: [number, number][] = []
  const native: [number, number][] = []
  for (let step = 0; step < STEPS; step++) {
    const images = randn([8, 1, 8, 8])
    const labels = tensor([0n, 1n, 2n, 3n, 0n, 1n, 2n, 3n])
    const loss = criterion.call(net.call(images), labels)
    optimizer.zeroGrad()
    loss.backward()
    optimizer.step()
    await setImmediate()
    if (step >= WARM_UP && step % EVERY === 0) {
      resident.push([step, process.memoryUsage.rss()])
      native.push([step, memory().cpu!.bytes])
    }
  }
  for (const [name, points] of Object.entries({ resident, native })) {
    const growth = slope(points) * (STEPS - WARM_UP)
    t.log(`${name}: ${(growth / MEBIBYTE).toFixed(1)} MiB over ${STEPS - WARM_UP} steps`)
    t.true(growth <= GROWTH, `${name} memory grows by ${growth / MEBIBYTE} MiB`)
  }
})
