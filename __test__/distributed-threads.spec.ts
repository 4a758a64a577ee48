/** Groups in worker threads: they end with their thread, even one that is blocked in a collective. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'

import test from 'ava'

import { freePort } from './distributed/ranks.ts'

const ROUNDS = 5
/** Milliseconds that ending a blocked thread may take. */
const PROMPT = 5000

test.serial('terminate() ends a thread that is blocked in a collective', async (t) => {
  for (let round = 0; round < ROUNDS; round += 1) {
    const initMethod = `tcp://127.0.0.1:${await freePort()}`
    const script = new URL('./distributed/group-in-thread.mjs', import.meta.url)
    const workers = [0, 1].map((rank) => new Worker(script, { workerData: { rank, initMethod } }))
    await Promise.all(workers.map((worker) => once(worker, 'message')))
    // Rank 0 goes on into its collective.
    await new Promise((resolve) => setTimeout(resolve, 100))
    const start = performance.now()
    await workers[0]?.terminate()
    await workers[1]?.terminate()
    const took = performance.now() - start
    t.true(took < PROMPT, `round ${round}: ${took} ms`)
  }
})
