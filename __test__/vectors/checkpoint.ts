/** A net that PyTorch trained goes on here: the body, for any device. */
import type { ExecutionContext } from 'ava'
import {
  AdaptiveAvgPool2d,
  BatchNorm2d,
  Conv2d,
  CrossEntropyLoss,
  Flatten,
  Linear,
  loadSafetensors,
  MaxPool2d,
  type Device,
  type Module,
  noGrad,
  ReLU,
  Sequential,
  SGD,
  tensor,
  type Tensor,
} from 'syncbn'

import { assertClose, scaleOf } from '../helpers/closeness.ts'
import { type Case, fixturePath, loadCases } from '../helpers/fixtures.ts'

/** What the run's entry says. */
export interface Config {
  start: string
  end: string
  options: { lr: number; momentum: number }
  steps: number
}

/** The net of fixtures/generators/checkpoint.py. */
function buildNet(): Module {
  return new Sequential(
    new Conv2d(1, 8, 3, { padding: 1, bias: false }),
    new BatchNorm2d(8),
    new ReLU(),
    new MaxPool2d(2),
    new Conv2d(8, 16, 3, { padding: 1, bias: false }),
    new BatchNorm2d(16),
    new ReLU(),
    new AdaptiveAvgPool2d(1),
    new Flatten(),
    new Linear(16, 10),
  )
}

/** The run, and the net as it started, on `device`. */
export async function loadRun(device: Device): Promise<{ run: Case<Config>; net: Module }> {
  const [run] = await loadCases<Config>('checkpoint-training', device)
  const net = buildNet().to(device)
  net.loadStateDict(await loadSafetensors(fixturePath(run!.config.start)))
  return { run: run!, net }
}

/** The net's answer in evaluation mode. */
export const evaluate = (net: Module, input: Tensor): Tensor => noGrad(() => net.eval().call(input))

/** The steps PyTorch made from here; the losses. */
export function trainOn(run: Case<Config>, net: Module): number[] {
  const optimizer = new SGD(net.parameters(), run.config.options)
  const criterion = new CrossEntropyLoss()
  net.train()
  return Array.from({ length: run.config.steps }, (_, step) => {
    optimizer.zeroGrad()
    const loss = criterion.call(net.call(run.get(`images.${step}`)), run.get(`labels.${step}`))
    loss.backward()
    optimizer.step()
    return loss.item()
  })
}

/** Training continues from a checkpoint of PyTorch as PyTorch does. */
export async function checkTraining(t: ExecutionContext, device: Device): Promise<void> {
  const { run, net } = await loadRun(device)
  assertClose(t, evaluate(net, run.get('evalInput')), run.get('logitsBeforeFloat64'), 2e-5, 'logits before')
  assertClose(t, tensor(trainOn(run, net)), run.get('lossesFloat64'), 2e-5, 'losses')
  assertClose(t, evaluate(net, run.get('evalInput')), run.get('logitsAfterFloat64'), 1e-4, 'logits after')
  for (const [key, expected] of await loadSafetensors(fixturePath(run.config.end))) {
    assertClose(t, net.stateDict().get(key) ?? null, expected, 2e-5 * Math.max(1, scaleOf(expected)), key)
  }
}
