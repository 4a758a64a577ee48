/** The generator gives PyTorch's numbers. */
import test from 'ava'
import { ArgumentError, manualSeed, rand, randn, type DType } from 'syncbn'

import { assertClose } from './helpers/closeness.ts'
import { loadCases } from './helpers/fixtures.ts'

interface Draw {
  op: 'manualSeed' | 'rand' | 'randn' | 'randperm'
  seed?: number
  size?: number
  dtype?: DType
}

/** PyTorch's own float32 normals differ by this much between processors. */
const VECTORIZED = 2e-6

test('rand and randn after manualSeed', async (t) => {
  let compared = 0
  for (const one of await loadCases<{ draws: Draw[] }>('random')) {
    // Permutations are drawn by the data loader; without them the stream cannot be followed here.
    if (one.config.draws.some((draw) => draw.op === 'randperm')) continue
    one.config.draws.forEach((draw, i) => {
      if (draw.op === 'manualSeed') return manualSeed(draw.seed!)
      const dtype = draw.dtype!
      const drawn = draw.op === 'rand' ? rand([draw.size!], { dtype }) : randn([draw.size!], { dtype })
      const tolerance = draw.op === 'randn' && dtype === 'float32' && draw.size! >= 16 ? VECTORIZED : 0
      assertClose(t, drawn, one.get(`draw.${i}`), tolerance, `${one.name} draw ${i}`)
      compared += 1
    })
  }
  t.true(compared > 50, `${compared} draws`)
})

test('a seed is an integer', (t) => {
  manualSeed(3)
  const first = rand([4]).dataSync()
  manualSeed(3n)
  t.deepEqual(rand([4]).dataSync(), first)
  t.throws(() => manualSeed(0.5), { instanceOf: ArgumentError })
  t.throws(() => manualSeed(NaN), { instanceOf: ArgumentError })
})
