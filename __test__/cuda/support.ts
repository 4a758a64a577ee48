/**
 * What the specs of this folder run on: a GPU, or in its place the fakes of crates/fake-cuda, which run the real kernels
 * on the CPU. Where there is neither, a spec registers one test that is skipped and says so.
 *
 *   SYNCBN_FAKE_CUDA=1    this process was started with the fakes in LD_LIBRARY_PATH
 *   REQUIRE_GPU=1         there must be a GPU: without one every test fails
 *   SYNCBN_TEST_DEVICE    the device of tests that need one, default cuda:0
 */
import test, { type ExecutionContext, type ImplementationFn } from 'ava'
import { cuda, type Device } from 'syncbn'

/** Whether kernels run on the fakes, which can be told to fail. */
export const onFakes = process.env.SYNCBN_FAKE_CUDA === '1'
/** Whether this process is to test CUDA at all. */
export const testsCuda = onFakes || process.env.REQUIRE_GPU === '1' || process.env.SYNCBN_TEST_DEVICE !== undefined
/** Where tests of one device run. */
export const DEVICE = (process.env.SYNCBN_TEST_DEVICE ?? 'cuda:0') as Device

/** Registers a spec's tests by calling `register`, or one skipped test in place of them. */
export function onCuda(what: string, register: () => void): void {
  if (testsCuda) return register()
  test.skip(`NOT TESTED: ${what}, since there is neither a GPU (REQUIRE_GPU=1) nor a fake of one (SYNCBN_FAKE_CUDA=1)`, (t) =>
    t.fail())
}

type Body = ImplementationFn<[], unknown>

/** A test that makes the fakes fail; skipped, and says so, on a GPU. */
export function fakesTest(title: string, body: Body): void {
  if (onFakes) test.serial(title, body)
  else test.skip(`NOT TESTED on a GPU, needs the fakes: ${title}`, body)
}

/** A test that needs `count` GPUs; skipped, and says so, where there are fewer. */
export function devicesTest(count: number, title: string, body: Body): void {
  const there = cuda.deviceCount()
  if (there >= count) test.serial(title, body)
  else test.skip(`NOT TESTED, needs ${count} GPUs and there are ${there}: ${title}`, body)
}

/** The error of `fn`, whose tensors are read so that what the device found out is seen. */
export async function deviceError(t: ExecutionContext, fn: () => unknown): Promise<Error & { code?: string }> {
  try {
    await fn()
    await cuda.synchronize(DEVICE)
  } catch (error) {
    return error as Error
  }
  t.fail('expected an error')
  return new Error('none')
}
