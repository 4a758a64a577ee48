/** A net that PyTorch trained goes on here, and one that was trained here goes on in PyTorch. */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

import test, { type ExecutionContext } from 'ava'
import { loadSafetensors, saveSafetensors, tensor, type Tensor } from 'syncbn'

import { assertClose } from './helpers/closeness.ts'
import { fixturePath } from './helpers/fixtures.ts'
import { checkTraining, evaluate, loadRun, trainOn } from './vectors/checkpoint.ts'

test('training continues from a checkpoint of PyTorch as PyTorch does', (t) => checkTraining(t, 'cpu'))

test('a checkpoint made here is one of PyTorch', async (t) => {
  const { run, net } = await loadRun('cpu')
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
