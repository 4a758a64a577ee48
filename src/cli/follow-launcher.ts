/**
 * Ends a rank when its launcher is gone. The launcher loads this file into every rank with `--import`.
 *
 * The launcher holds the other end of a socket (its number is in SYNCBN_LAUNCHER_FD) and never writes to it; the
 * system closes it however the launcher ends, kill -9 included. A thread of its own watches it, since a training
 * loop may never return to the main thread's event loop. The rank leads a process group, so the rank's own children
 * end with it.
 */
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads'
import { Socket } from 'node:net'

const ENVIRONMENT_NAME = 'SYNCBN_LAUNCHER_FD'

function startWatching(descriptor: number): void {
  const watcher = new Worker(new URL(import.meta.url), {
    workerData: { syncbnLauncherDescriptor: descriptor },
    execArgv: [],
    stdin: false,
  })
  watcher.unref()
}

function watch(descriptor: number): void {
  const socket = new Socket({ fd: descriptor, readable: true, writable: false })
  const end = (): void => {
    // The rank cannot be asked to end in good order: its main thread may be blocked in a collective.
    process.kill(-process.pid, 'SIGKILL')
  }
  socket.on('end', end).on('error', end).resume()
}

if (isMainThread) {
  const descriptor = process.env[ENVIRONMENT_NAME]
  // Removed so that processes which the script starts do not take an unrelated descriptor for the launcher's.
  delete process.env[ENVIRONMENT_NAME]
  if (descriptor !== undefined) startWatching(Number(descriptor))
} else if (parentPort !== null && typeof workerData?.syncbnLauncherDescriptor === 'number') {
  watch(workerData.syncbnLauncherDescriptor)
}
