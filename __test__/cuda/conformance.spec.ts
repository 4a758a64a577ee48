/** PyTorch's vectors on a GPU: the same bodies that run on the CPU. */
import test from 'ava'
import { tensor } from 'syncbn'

import { toNumbers } from '../helpers/closeness.ts'
import { loadCases } from '../helpers/fixtures.ts'
import * as batchNorm from '../vectors/batch-norm.ts'
import { checkTraining } from '../vectors/checkpoint.ts'
import { checkPenalties } from '../vectors/double-backward.ts'
import { checkEveryCase, checkGradient, differentiable } from '../vectors/operations.ts'
import { checkContinuation, checkSteps } from '../vectors/optimizers.ts'
import { DEVICE, onCuda } from './support.ts'

onCuda('PyTorch’s vectors', () => {
  test('operations: every case of PyTorch', (t) => checkEveryCase(t, DEVICE))

  for (const kind of batchNorm.LAYER_KINDS) {
    test(`${kind}: every case of PyTorch`, (t) => batchNorm.checkEveryCase(t, DEVICE, kind))
  }

  test('gradient penalties through batch norm are those of PyTorch', (t) => checkPenalties(t, DEVICE))
  test('five optimizer steps of every case of PyTorch', (t) => checkSteps(t, DEVICE))
  test('an optimizer’s state dict continues a run exactly', (t) => checkContinuation(t, DEVICE))
  test('training continues from a checkpoint of PyTorch as PyTorch does', (t) => checkTraining(t, DEVICE))

  test('conversions to half types are those of PyTorch', async (t) => {
    for (const half of await loadCases('half', DEVICE)) {
      const converted = half.get('source').to(half.dtype as 'float16')
      t.is(converted.device, DEVICE)
      // As numbers: which NaN comes out is the processor's choice.
      t.deepEqual(toNumbers(converted.to('float32')), toNumbers(half.get('halfAsFloat32')), half.name)
    }
  })

  for (const name of Object.keys(differentiable('cpu'))) {
    test(`gradient against central differences: ${name}`, (t) => checkGradient(t, DEVICE, name))
  }

  test('int64 numbers beyond 2^53 go there and back', (t) => {
    const values = BigInt64Array.of(2n ** 62n + 1n, -(2n ** 53n) - 1n)
    t.deepEqual(tensor(values, { device: DEVICE }).dataSync(), values)
  })
})
