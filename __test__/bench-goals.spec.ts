/** What a benchmark of a GPU says of its goals. */
import test from 'ava'

import { goals, goalsReport } from '../benches/node/cuda-goals.ts'
import type { CudaResult, CudaResults } from '../benches/node/cuda-results.ts'

const COPY = 4000

/** A problem of so many megabytes whose kernels reach `share` of the copy. */
function problem(megabytes: number, share: number, torch?: number): CudaResult {
  const bytes = 1e6 * megabytes
  const ms = (passes: number): number => (passes * megabytes) / (share * COPY)
  const [stats, normalize, backwardReduce, backwardApply] = [ms(1), ms(2), ms(2), ms(3)]
  const [forward, backward] = [stats + normalize, backwardReduce + backwardApply]
  const ours = {
    stats,
    normalize,
    backwardReduce,
    backwardApply,
    forward,
    backward,
    syncForward: forward,
    syncBackward: backward,
  }
  const theirs = torch !== undefined && {
    torch: {
      stats: 0,
      mergeAndNormalize: 0,
      backwardReduce: 0,
      backwardApply: 0,
      syncForward: torch * forward,
      syncBackward: torch * backward,
      cudnn: { forwardMs: torch * forward, backwardMs: torch * backward },
      native: { unavailable: 'not asked' },
    },
  }
  return {
    shape: [megabytes, 1],
    memoryFormat: 'contiguous',
    dtype: 'float32',
    bytes,
    ours,
    moduleMs: 1,
    gigabytesPerSecond: { forward: 0, backward: 0 },
    ...theirs,
  } as CudaResult
}

const results = (problems: CudaResult[]): CudaResults => ({ problems, copyGigabytesPerSecond: COPY }) as CudaResults

test('the least of the problems that count decides', (t) => {
  const [stats, normalize, reduce, apply, small, large, plain] = goals(
    results([problem(10, 0.1, 2.5), problem(60, 0.9, 1.3), problem(200, 0.8, 0.9)]),
  )
  for (const kernel of [stats, normalize, reduce, apply]) {
    t.false(kernel!.reached)
    t.true(Math.abs(kernel!.worst!.value - 0.8) < 1e-9, 'the small one does not count')
  }
  t.like(small, { reached: true, worst: { value: 2.5 } })
  t.like(large, { reached: false, worst: { value: 0.9, problem: '(200, 1) contiguous float32' } })
  t.false(plain!.reached)
})

test('what was not measured is neither reached nor missed, and no number is reached', (t) => {
  const all = goals(results([problem(10, 1)]))
  t.deepEqual(
    all.map(({ reached }) => reached),
    Array(7).fill(null),
  )
  t.true(goalsReport(all).every((line) => line.startsWith('not measured')))
  const broken = goals(results([problem(100, NaN), problem(100, 1)]))
  t.false(broken[0]!.reached)
  t.true(goalsReport(broken)[0]!.startsWith('NOT reached'))
})
