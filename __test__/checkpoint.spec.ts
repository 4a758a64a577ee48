/** A net that PyTorch trained goes on here, and one that was trained here goes on in PyTorch. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import {
  AdaptiveAvgPool2d,
  BatchNorm2d,
  Conv2d,
  CrossEntropyLoss,
  Flatten,
  Linear,
  loadSafetensors,
  MaxPool2d,
  type Module,
  noGrad,
  ReLU,
  saveSafetensors,
  Sequential,
  SGD,
  tensor,
  type Tensor,
} from 'syncbn'

import { assertClose, scaleOf } from './helpers/closeness.ts'
import { type Case, fixturePath, loadCases } from './helpers/fixtures.ts'

interface Config {
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

async function loadRun(): Promise<{ run: Case<Config>; net: Module }> {
  const [run] = await loadCases<Config>('checkpoint-training')
  const net = buildNet()
  net.loadStateDict(await loadSafetensors(fixturePath(run!.config.start)))
  return { run: run!, net }
}

const evaluate = (net: Module, input: Tensor): Tensor => noGrad(() => net.eval().call(input))

/** The steps PyTorch made from here; the losses. */
function trainOn(run: Case<Config>, net: Module): number[] {
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

test('training continues from a checkpoint of PyTorch as PyTorch does', async (t) => {
  const { run, net } = await loadRun()
  assertClose(t, evaluate(net, run.get('evalInput')), run.get('logitsBeforeFloat64'), 2e-5, 'logits before')
  assertClose(t, tensor(trainOn(run, net)), run.get('lossesFloat64'), 2e-5, 'losses')
  assertClose(t, evaluate(net, run.get('evalInput')), run.get('logitsAfterFloat64'), 1e-4, 'logits after')
  for (const [key, expected] of await loadSafetensors(fixturePath(run.config.end))) {
    assertClose(t, net.stateDict().get(key) ?? null, expected, 2e-5 * Math.max(1, scaleOf(expected)), key)
  }
})

test('a checkpoint made here is one of PyTorch', async (t) => {
  const { run, net } = await loadRun()
  trainOn(run, net)
  const folder = mkdtempSync(join(tmpdir(), 'syncbn-checkpoint-'))
  try {
    const path = join(folder, 'net.safetensors')
    await saveSafetensors(path, net.stateDict())
    await assertSameLayout(t, path, fixturePath(run.config.end))
    await saveSafetensors(path, new Map([...net.stateDict(), ['__input__', run.get('evalInput')]]))
    assertPyTorchAgrees(t, path, evaluate(net, run.get('evalInput')))
  } finally {
    rmSync(folder, { recursive: true })
  }
})

/** The keys, dtypes and shapes of a file that PyTorch wrote, so that its strict load accepts ours. */
async function assertSameLayout(t: ExecutionContext, ours: string, theirs: string): Promise<void> {
  const layout = async (path: string) =>
    [...(await loadSafetensors(path))]
      .map(([key, { dtype, shape }]) => `${key} ${dtype} [${shape.join(', ')}]`)
      .toSorted()
  t.deepEqual(await layout(ours), await layout(theirs))
}

/** Loads the file in PyTorch, where Python can import it, and compares what the net answers there. */
function assertPyTorchAgrees(t: ExecutionContext, path: string, expected: Tensor): void {
  const python = process.env.SYNCBN_PYTHON ?? 'python3'
  const { error, status, stdout, stderr } = spawnSync(python, [fixturePath('load_back.py'), path], { encoding: 'utf8' })
  if (error || status === 3) {
    t.log(`not loaded in PyTorch, which ${python} cannot import: only compared with a file that PyTorch wrote`)
    return
  }
  t.is(status, 0, stderr)
  const { logits, torch } = JSON.parse(stdout) as { logits: number[][]; torch: string }
  t.log(`loaded in PyTorch ${torch}`)
  assertClose(t, tensor(logits), expected, 2e-5, 'logits in PyTorch')
}
