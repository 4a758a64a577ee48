/** Checkpoint files. */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'ava'
import {
  ArgumentError,
  DeviceError,
  Linear,
  loadSafetensors,
  randn,
  saveSafetensors,
  tensor,
  zeros,
  type Tensor,
} from 'syncbn'

const folder = mkdtempSync(join(tmpdir(), 'syncbn-'))
test.after.always(() => rmSync(folder, { recursive: true, force: true }))

test('every dtype, shape and format comes back bit for bit', async (t) => {
  const path = join(folder, 'all.safetensors')
  const tensors = new Map<string, Tensor>([
    ['scalar', tensor(1.5)],
    ['empty', zeros([0, 3])],
    ['wide', randn([2, 3], { dtype: 'float64' })],
    ['last', randn([2, 3, 4, 5]).to({ memoryFormat: 'channelsLast' })],
    ['int32', tensor(Int32Array.of(1, -2))],
    ['int64', tensor([2n ** 60n])],
    ['float16', tensor(Uint16Array.of(1, 0x7e00), { dtype: 'float16' })],
    ['bfloat16', tensor(Uint16Array.of(1, 0xff80), { dtype: 'bfloat16' })],
  ])
  await saveSafetensors(path, tensors, { note: 'ünïcode' })
  const loaded = await loadSafetensors(path)
  t.deepEqual([...loaded.keys()].sort(), [...tensors.keys()].sort())
  for (const [name, expected] of tensors) {
    const actual = loaded.get(name)!
    t.is(actual.dtype, expected.dtype)
    t.deepEqual([...actual.shape], [...expected.shape])
    t.deepEqual(actual.dataSync({ raw: true }), expected.dataSync({ raw: true }), name)
  }
})

test('the values are those at the time of the call; an old file is replaced whole', async (t) => {
  const path = join(folder, 'snapshot.safetensors')
  writeFileSync(path, 'old')
  const x = tensor([1, 2])
  const saving = saveSafetensors(path, new Map([['x', x]]))
  x.fill_(9)
  await saving
  t.deepEqual((await loadSafetensors(path)).get('x')!.dataSync(), Float32Array.of(1, 2))
  t.deepEqual(
    readdirSync(folder).filter((name) => name.startsWith('snapshot')),
    ['snapshot.safetensors'],
  )
})

test('a module goes through a file', async (t) => {
  const path = join(folder, 'module.safetensors')
  const [a, b] = [new Linear(3, 2), new Linear(3, 2)]
  await saveSafetensors(path, a.stateDict())
  b.loadStateDict(await loadSafetensors(path))
  t.deepEqual(b.weight.dataSync(), a.weight.dataSync())
})

test('bad files and arguments are typed errors', async (t) => {
  const file = { instanceOf: ArgumentError, code: 'ERR_FILE' }
  await t.throwsAsync(loadSafetensors(join(folder, 'absent')), file)
  const garbage = join(folder, 'garbage')
  writeFileSync(garbage, Buffer.alloc(64, 0xff))
  await t.throwsAsync(loadSafetensors(garbage), file)
  await t.throwsAsync(saveSafetensors(join(folder, 'no', 'such', 'folder'), new Map([['x', zeros([1])]])), file)
  await t.throwsAsync(saveSafetensors(3 as never, new Map()), { instanceOf: ArgumentError })
  await t.throwsAsync(saveSafetensors(join(folder, 'x'), {} as never), { instanceOf: ArgumentError })
  await t.throwsAsync(loadSafetensors(garbage, { device: 'cuda:0' }), { instanceOf: DeviceError })
  const disposed = zeros([1])
  disposed.dispose()
  await t.throwsAsync(saveSafetensors(join(folder, 'x'), new Map([['x', disposed]])), { code: 'ERR_DISPOSED' })
})
