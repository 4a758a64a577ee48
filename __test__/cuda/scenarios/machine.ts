/** What one process sees of a machine whose driver, NCCL or memory is not what it should be. */
import {
  cuda,
  destroyProcessGroup,
  Linear,
  manualSeed,
  rand,
  SyncBatchNorm,
  Tensor,
  tensor,
  zeros,
  type Tensor as AnyTensor,
} from 'syncbn'

import { join } from '../../distributed/place.ts'
import { seen } from '../../distributed/seen-error.ts'

/** Everything that needs a GPU, where there is none that can be used; and that the CPU goes on. */
export async function unavailable(): Promise<unknown> {
  manualSeed(3)
  const expected = rand([3]).dataSync()
  manualSeed(3)
  const device = 'cuda:0'
  const net = new SyncBatchNorm(2)
  const errors = {
    zeros: await seen(() => zeros([1], { device })),
    rand: await seen(() => rand([1], { device })),
    to: await seen(() => zeros([1]).to(device)),
    linear: await seen(() => new Linear(2, 2, { device })),
    module: await seen(() => net.to({ device, dtype: 'float64' })),
    pointer: await seen(() => Tensor.fromPointer({ ptr: 4096n, shape: [1], dtype: 'float32', device })),
    setDevice: await seen(() => cuda.setDevice(0)),
    currentDevice: await seen(() => cuda.currentDevice()),
    synchronize: await seen(() => cuda.synchronize()),
    memoryStats: await seen(() => cuda.memoryStats()),
    capture: await seen(() => cuda.capture(() => undefined)),
    deviceId: await seen(() => join({ deviceId: device })),
    nccl: await seen(() => join({ deviceId: undefined as never, backend: 'nccl', timeout: 10_000 })),
  }
  const drawn = rand([3]).dataSync()
  const group = await join({
    deviceId: undefined as never,
    timeout: 10_000,
    initMethod: `file://${process.env.TEST_FILE}`,
  })
  const { backend } = group
  await destroyProcessGroup()
  return {
    available: cuda.isAvailable(),
    count: cuda.deviceCount(),
    errors,
    untouched: net.weight!.dtype === 'float32' && JSON.stringify(drawn) === JSON.stringify(expected),
    sum: tensor([1, 2]).sum().item(),
    backend,
  }
}

/** Groups where NCCL cannot be loaded: asked for it is an error, else tcp. */
export async function withoutNccl(): Promise<unknown> {
  const asked = await seen(() => join({ backend: 'nccl', timeout: 10_000 }))
  const { backend } = await join({ timeout: 10_000, initMethod: `file://${process.env.TEST_FILE}` })
  await destroyProcessGroup()
  return { asked, backend }
}

/** Takes memory until there is no more; then gives some back and goes on. */
export async function outOfMemory(): Promise<unknown> {
  const device = 'cuda:0'
  const kept: AnyTensor[] = [zeros([3, 1000, 100], { device })]
  const error = await seen(() => {
    for (let i = 0; i < 10_000; i += 1) kept.push(zeros([256, 100], { device, dtype: 'float64' }))
  })
  const live = cuda.memoryStats(device).allocatedBytes
  kept.splice(0, 5).forEach((x) => x.dispose())
  const again = zeros([256, 100], { device, dtype: 'float64' }).add(1).mean().item()
  const tooLarge = await seen(() => zeros([1 << 20, 1 << 20], { device }))
  return { error, live, again, tooLarge }
}
