// A rank with a GPU in a worker thread, for faults.spec.ts: rank 0 has collectives under way that the other never joins,
// first of a group of its own, then of the default group.
import { parentPort, workerData } from 'node:worker_threads'

import { allReduce, cuda, initProcessGroup, newGroup, zeros } from 'syncbn'

const { device, ...options } = workerData
const group = await initProcessGroup({ ...options, worldSize: 2, timeout: 60_000, deviceId: device, backend: 'nccl' })
const part = await newGroup([0, 1])
parentPort.postMessage('met')
if (group.rank === 0) {
  allReduce(zeros([4], { device }), { group: part }).wait()
  allReduce(zeros([4], { device })).wait()
  // Blocks this thread's event loop.
  zeros([1], { device }).add(1).item()
  await cuda.synchronize(device)
}
// The other rank stays in its event loop.
setInterval(() => {}, 1000)
