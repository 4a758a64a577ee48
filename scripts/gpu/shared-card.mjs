/**
 * Two NCCL ranks on one GPU: that they meet where NCCL itself allows it, and how long a survivor takes to notice that the
 * other was killed while it waited in a collective. Prints JSON.
 */
import { runOnGpus } from '../../__test__/cuda/ranks.js'
import { native } from '../../dist/native.js'

/** The first NCCL with NCCL_MULTI_RANK_GPU_ENABLE. */
const SHARES = [2, 30, 3]
/** Milliseconds that a survivor may take: a process' end is noticed long before its group's deadline. */
const NOTICED = 5000
const TIMEOUT = 20_000

const isAtLeast = (version, least) => {
  const at = least.findIndex((part, i) => version[i] !== part)
  return at === -1 || version[at] > least[at]
}

const version = native.ncclInfo().version.split('.').map(Number)
const shares = isAtLeast(version, SHARES)
const meeting = await runOnGpus('cuda/groups.backend', 2, {
  backend: 'nccl',
  env: () => ({
    TEST_DEVICE: 'cuda:0',
    ...(shares && { NCCL_MULTI_RANK_GPU_ENABLE: '1', NCCL_HOSTID: undefined }),
  }),
})
const allowedBy = shares ? 'NCCL_MULTI_RANK_GPU_ENABLE' : 'NCCL_HOSTID'
const met = meeting.map(({ value }) => value)
if (!met.every(({ backend, sum }) => backend === 'nccl' && sum === 3)) throw new Error(JSON.stringify(met))

const noticed = {}
for (const scenario of ['dieInAllReduce', 'dieInForward']) {
  const outcomes = await runOnGpus(`cuda/faults.${scenario}`, 2, {
    backend: 'nccl',
    failuresExpected: true,
    args: { timeout: TIMEOUT, culprit: 1 },
    deadline: 3 * TIMEOUT,
  })
  const error = outcomes[0].value?.first
  if (error?.code !== 'ERR_PEER_LOST' || !(error.after < NOTICED)) {
    throw new Error(`${scenario}: ${JSON.stringify(error)}\n${outcomes[0].output}`)
  }
  noticed[scenario] = { code: error.code, milliseconds: error.after }
}
process.stdout.write(`${JSON.stringify({ nccl: version.join('.'), ranksOnOneCard: allowedBy, noticed })}\n`)
