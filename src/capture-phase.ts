/**
 * Whether `cuda.capture` runs its function, and what is to happen on the host when the recording is replayed or given
 * up.
 *
 * A replay repeats what the device did, not what JavaScript did. So state that changes from step to step lives on the
 * device once a capture has begun, and the little that the host keeps beside it is brought up to date by callbacks.
 */

/** 'warmup': the function runs and computes. 'recording': it runs once more, and what it enqueues is recorded. */
export type CapturePhase = 'none' | 'warmup' | 'recording'

/** What the host does with a recording. */
export interface HostSide {
  /** After each replay. */
  readonly onReplay: (() => void)[]
  /** When the recorded function has thrown. */
  readonly onAbandon: (() => void)[]
}

let phase: CapturePhase = 'none'
let hostSide: HostSide = { onReplay: [], onAbandon: [] }

/** Which phase this thread is in. */
export function capturePhase(): CapturePhase {
  return phase
}

/** Runs `fn` in a phase. @returns what `fn` returns, and what it wants done on the host */
export function inCapturePhase<T>(next: 'warmup' | 'recording', fn: (hostSide: HostSide) => T): T {
  const before = { phase, hostSide }
  phase = next
  hostSide = { onReplay: [], onAbandon: [] }
  try {
    return fn(hostSide)
  } finally {
    phase = before.phase
    hostSide = before.hostSide
  }
}

/** Calls `fn` now, or, of a step that is only recorded, after each replay of it. */
export function atEachStep(fn: () => void): void {
  if (phase === 'recording') hostSide.onReplay.push(fn)
  else fn()
}

/** Calls `fn` if a recording is under way and ends with an error. */
export function ifAbandoned(fn: () => void): void {
  if (phase === 'recording') hostSide.onAbandon.push(fn)
}
