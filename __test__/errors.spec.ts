/** Errors: classes, names, and codes that equal the native list. */
import { createRequire } from 'node:module'
import test from 'ava'
import {
  ArgumentError,
  DeviceError,
  DistributedError,
  ShapeError,
  SyncBnError,
  Tensor,
  TimeoutError,
  cuda,
  tensor,
  zeros,
} from 'syncbn'

import { errorKinds, fromNative, makeError } from '../dist/errors.js'

const binding = createRequire(import.meta.url)('../dist/binding.cjs') as {
  errorCodes(): { code: string; kind: string }[]
}

test('the codes and kinds are those of the native side', (t) => {
  const native = Object.fromEntries(binding.errorCodes().map(({ code, kind }) => [code, kind]))
  t.deepEqual({ ...errorKinds }, native as typeof errorKinds)
})

test('a native error becomes the class of its code, with its details', (t) => {
  const data = {
    code: 'ERR_TIMEOUT',
    message: 'rank 1 is missing',
    group: 'world',
    rank: 0,
    peer: 1,
    operation: 'barrier',
  }
  const error = fromNative(new Error(JSON.stringify(data)))
  t.true(error instanceof TimeoutError && error instanceof DistributedError && error instanceof SyncBnError)
  const { name, message, code, group, rank, peer, operation } = error as TimeoutError
  t.deepEqual({ name, message, code, group, rank, peer, operation }, { name: 'TimeoutError', ...data } as never)
})

test('what the native side does not know is absent', (t) => {
  const data = { code: 'ERR_MISMATCH', message: 'm', group: null, rank: 0, peer: null, operation: null }
  const error = fromNative(new Error(JSON.stringify(data))) as DistributedError
  t.is(error.rank, 0)
  t.deepEqual([error.group, error.peer, error.operation], [undefined, undefined, undefined])
})

test('what is no native error of ours stays as it is; range errors become RangeError', (t) => {
  const foreign = new Error('{"code":"ERR_UNHEARD_OF"}')
  t.is(fromNative(foreign), foreign)
  const broken = new Error('{not json')
  t.is(fromNative(broken), broken)
  t.true(fromNative(new Error('RangeError: too large')) instanceof RangeError)
  t.is(fromNative('text'), 'text')
})

test('every code makes an error that knows it', (t) => {
  for (const code of Object.keys(errorKinds) as (keyof typeof errorKinds)[]) {
    const error = makeError(code, 'why')
    t.true(error instanceof SyncBnError)
    t.is(error.code, code)
    t.is(error.name, error.constructor.name)
  }
})

test('native failures arrive as typed errors that say what was expected', (t) => {
  const error = t.throws(() => zeros([2, 3]).add(zeros([4])), { instanceOf: ShapeError, code: 'ERR_SHAPE' })
  t.regex(error.message, /2.*3|\[4\]/)
  t.throws(() => zeros([2]).reshape([3]), { instanceOf: ShapeError })
})

test('a device that is none, and an address of the CPU, are errors on every machine', (t) => {
  const expected = { instanceOf: DeviceError, code: 'ERR_DEVICE' }
  t.throws(() => zeros([1]).ptr, expected)
  for (const device of ['tpu', 'cuda', 'cuda:', 'cuda:-1', 'cuda:01', 'CPU', '', 7]) {
    t.throws(() => zeros([1], { device: device as 'cpu' }), expected, String(device))
    t.throws(() => zeros([1]).to({ device: device as 'cpu' }), expected, String(device))
  }
  t.is(cuda.isAvailable(), cuda.deviceCount() > 0)
})

test('an argument of the wrong JavaScript type is an ArgumentError', (t) => {
  t.throws(() => zeros([1]).add('1' as never), { instanceOf: ArgumentError })
  t.throws(() => zeros(['1'] as never), { instanceOf: ArgumentError })
  t.throws(() => new (Tensor as unknown as new () => Tensor)(), { instanceOf: ArgumentError })
  t.throws(() => tensor(['a'] as never), { instanceOf: ArgumentError })
})
