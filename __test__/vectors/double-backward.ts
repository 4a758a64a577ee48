/** Second derivatives of batch norm on PyTorch's vectors: the body, for any device. */
import type { ExecutionContext } from 'ava'
import { grad, type Device, type Tensor } from 'syncbn'
import * as F from 'syncbn/functional'

import { assertClose } from '../helpers/closeness.ts'
import { type Case, loadCases } from '../helpers/fixtures.ts'

type DoubleBackward = { model: 'bn' | 'net'; training: boolean; eps: number; undefinedGradients: string[] }

function outputOf(one: Case<DoubleBackward>, leaves: Record<string, Tensor>): Tensor {
  const { model, training, eps } = one.config
  const { input, weight, bias } = leaves as Record<'input' | 'weight' | 'bias', Tensor>
  const buffers = { runningMean: one.copy('runningMean'), runningVar: one.copy('runningVar') }
  const normalize = (x: Tensor): Tensor => F.batchNorm(x, { weight, bias, ...buffers, training, eps })
  if (model === 'bn') return normalize(input)
  const hidden = normalize(F.linear(input, leaves['linear1.weight']!, leaves['linear1.bias']!))
  return F.linear(F.relu(hidden), leaves['linear2.weight']!, leaves['linear2.bias']!)
}

/** Gradient penalties through batch norm are those of PyTorch. */
export async function checkPenalties(t: ExecutionContext, device: Device): Promise<void> {
  for (const one of await loadCases<DoubleBackward>('double-backward', device)) {
    const names = one.names(/^penaltyGradient\./).map((name) => name.slice('penaltyGradient.'.length))
    const leaves = Object.fromEntries(names.map((name) => [name, one.copy(name)!]))
    for (const one of Object.values(leaves)) one.requiresGrad = true
    const output = outputOf(one, leaves)
    const [gradInput] = grad(output, [leaves['input']!], { gradOutputs: [leaves['v']!], createGraph: true })
    const penalty = gradInput!.mul(gradInput!).sum()
    assertClose(t, output, one.get('output'), 1e-12, `${one.name} output`)
    assertClose(t, gradInput!, one.get('gradInput'), 1e-11, `${one.name} gradInput`)
    assertClose(t, penalty, one.get('penalty'), 1e-9, `${one.name} penalty`)
    for (const name of names.filter((name) => !one.config.undefinedGradients.includes(name))) {
      const [gradient] = grad(penalty, [leaves[name]!], { retainGraph: true })
      assertClose(t, gradient!, one.get(`penaltyGradient.${name}`), 1e-9, `${one.name} penalty by ${name}`)
    }
  }
}
