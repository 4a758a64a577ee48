/** Process groups, collectives and SyncBatchNorm on ranks with GPUs, over NCCL and over TCP. */
import test from 'ava'
import { cuda } from 'syncbn'

import type { Comparison } from '../distributed/scenarios/conformance.ts'
import type { SeenError } from '../distributed/ranks.ts'
import { runOnGpus, valuesOnGpus, type Backend } from './ranks.ts'
import { devicesTest, fakesTest, onCuda } from './support.ts'

const BACKENDS = ['nccl', 'tcp'] as const
const LENGTH = 1031
const numbers = (rank: number): number[] => Array.from({ length: LENGTH }, (_, i) => ((i * 7 + rank * 3) % 11) - 5)

interface Mixed {
  sums: Record<string, number[]>
  here: number
  array: number
  gathered: number[]
  sent: number
}

onCuda('ranks with GPUs', () => {
  test.serial('without a wish the backend is nccl where every rank has a GPU of its own', async (t) => {
    const size = Math.min(2, cuda.deviceCount())
    const sum = (size * (size + 1)) / 2
    const run = (backend: Backend, extra = {}) =>
      valuesOnGpus<{ backend: string; sum: number }>('cuda/groups.backend', size, { backend, env: () => extra })
    t.deepEqual(await run(null), Array(size).fill({ backend: 'nccl', sum }))
    t.deepEqual(await run('tcp'), Array(size).fill({ backend: 'tcp', sum }))
    t.deepEqual(await run(null, { SYNCBN_NCCL_PATH: '/nonexistent' }), Array(size).fill({ backend: 'tcp', sum }))
  })

  for (const backend of BACKENDS) {
    for (const size of [1, 2, 4]) {
      test.serial(`${backend}, ${size} ranks: sums, gathers and broadcasts of GPU and CPU data`, async (t) => {
        const total = (size * (size + 1)) / 2
        for (const value of await valuesOnGpus<Mixed>('cuda/groups.mixedPlaces', size, { backend })) {
          for (const [dtype, result] of Object.entries(value.sums)) t.deepEqual(result, [total, 1], dtype)
          const gathered = Array.from({ length: size }, (_, rank) => 2 * rank)
          t.deepEqual([value.here, value.array, value.sent], [total, total, 3 * (size - 1)])
          t.deepEqual(value.gathered, gathered)
        }
      })
    }

    test.serial(`${backend}: the scenarios of CPU ranks`, async (t) => {
      const reduced = await valuesOnGpus<Record<string, ArrayLike<number>[]>>('collectives.reductions', 2, { backend })
      const expected = numbers(0).map((value, i) => value + numbers(1)[i]!)
      for (const value of reduced) for (const sums of value['sum']!) t.deepEqual(Array.from(sums, Number), expected)
      const copies = await valuesOnGpus<{ tensors: BigInt64Array[] }>('collectives.copies', 3, { backend })
      for (const { tensors } of copies) t.deepEqual(tensors.map((x) => Number(x[0])), [0, 1, 2]) // prettier-ignore
    })

    test.serial(`${backend}: waiting orders a collective before what comes next, without blocking`, async (t) => {
      const expected = [4]
      for (let round = 1; round < 5; round += 1) expected.push(2 * expected.at(-1)! + 1)
      for (const totals of await valuesOnGpus<number[]>('cuda/groups.order', 2, { backend }))
        t.deepEqual(totals, expected)
    })

    test.serial(`${backend}: groups of some ranks`, async (t) => {
      interface Subgroup {
        backend: string
        total: number
        outside: SeenError
      }
      for (const value of await valuesOnGpus<Subgroup>('cuda/groups.subgroups', 4, { backend })) {
        t.is(value.backend, backend)
        t.is(value.total, 2 * (0 + 1) + 2 * (2 + 3))
        t.like(value.outside, { name: 'DistributedError', code: 'ERR_NOT_IN_GROUP' })
      }
    })

    test.serial(`${backend}: groups that are made among collectives have their place in the program`, async (t) => {
      for (const sums of await valuesOnGpus<number[]>('cuda/groups.groupsAmongCollectives', 2, { backend })) {
        t.is(sums.length, 12)
        for (let round = 0; round < 12; round += 3) t.deepEqual(sums.slice(round, round + 3), [3, 1, 1])
      }
    })

    for (const size of [1, 2, 4]) {
      test.serial(
        `${backend}: SyncBatchNorm over ${size} ranks agrees with PyTorch over all their values`,
        async (t) => {
          const options = { backend, deadline: 180_000 }
          const values = await valuesOnGpus<Comparison[]>('conformance.syncBatchNorm', size, options)
          for (const [rank, comparisons] of values.entries()) {
            t.true(comparisons.length > 0)
            for (const { name, result, error, tolerance } of comparisons) {
              if (!(error <= tolerance)) t.fail(`rank ${rank}, ${name}, ${result}: ${error} > ${tolerance}`)
            }
          }
        },
      )
    }
  }

  devicesTest(2, 'tensors and modules on another device than the group’s are refused', async (t) => {
    interface Wrong extends Record<'reduced' | 'gathered' | 'ids' | 'split', SeenError> {
      backend: string
      moved: object
    }
    for (const value of await valuesOnGpus<Wrong>('cuda/groups.wrongDevices', 2, { backend: 'nccl' })) {
      for (const key of ['reduced', 'gathered', 'ids', 'split'] as const) {
        t.is(value[key].code, 'ERR_DEVICE', `${key}: ${value[key].message}`)
        t.is(value[key].name, 'DeviceError')
      }
      t.like(value.moved, { output: 'cpu', value: 1.5 })
    }
  })

  test.serial(
    'two ranks on one GPU: refused with the ways out, tcp without a wish, and possible when NCCL is told',
    async (t) => {
      const shared = { TEST_DEVICE: 'cuda:0', NCCL_HOSTID: undefined, NCCL_SOCKET_IFNAME: undefined }
      const run = (backend: Backend, extra = {}) =>
        runOnGpus<{ backend: string; sum: number }>('cuda/groups.backend', 2, {
          backend,
          failuresExpected: true,
          env: () => ({ ...shared, ...extra }),
        })
      for (const { output, value } of await run('nccl')) {
        t.is(value, undefined)
        for (const part of ['ERR_DEVICE', 'ranks 0 and 1', 'NCCL_MULTI_RANK_GPU_ENABLE=1', 'NCCL_HOSTID']) {
          t.true(output.includes(part), `${part} in ${output}`)
        }
      }
      for (const { value } of await run(null)) t.deepEqual(value, { backend: 'tcp', sum: 3 })
      const ways = { NCCL_HOSTID: 'rank', NCCL_SOCKET_IFNAME: 'lo' }
      const told = await runOnGpus<{ backend: string; sum: number }>('cuda/groups.backend', 2, {
        backend: 'nccl',
        env: (rank) => ({ ...shared, ...ways, NCCL_HOSTID: `rank-${rank}` }),
      })
      for (const { value } of told) t.deepEqual(value, { backend: 'nccl', sum: 3 })
    },
  )

  fakesTest('two ranks on one GPU with the switch of NCCL 2.30.3', async (t) => {
    const shared = { TEST_DEVICE: 'cuda:0', NCCL_HOSTID: undefined, NCCL_MULTI_RANK_GPU_ENABLE: '1' }
    const run = (extra = {}) =>
      runOnGpus<{ backend: string; sum: number }>('cuda/groups.backend', 2, {
        backend: 'nccl',
        failuresExpected: true,
        env: () => ({ ...shared, ...extra }),
      })
    for (const { value, output } of await run()) t.deepEqual(value, { backend: 'nccl', sum: 3 }, output)
    for (const { output } of await run({ FAKE_NCCL_VERSION: '23002' })) t.true(output.includes('ERR_DEVICE'), output)
  })
})
