// A rank in a worker thread, for worker-thread.spec.ts: blocks in a collective that the other rank never joins.
import { parentPort, workerData } from 'node:worker_threads'

import { allReduce, initProcessGroup } from 'syncbn'

const group = await initProcessGroup({ ...workerData, worldSize: 2, timeout: 60_000 })
parentPort.postMessage('met')
if (group.rank === 0) allReduce(new Float32Array(4)).wait()
// The other rank stays in its event loop.
setInterval(() => {}, 1000)
