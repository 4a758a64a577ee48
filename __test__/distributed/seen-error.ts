/** Errors as data, for scenarios that expect one. */
import type { SeenError } from './ranks.ts'

/** Runs `fn`, which has to throw, and describes what it threw. */
export async function seen(fn: () => unknown): Promise<SeenError> {
  const start = performance.now()
  try {
    await fn()
  } catch (error) {
    const { message } = error as Error
    const { code } = error as { code?: string }
    return { name: (error as Error).constructor.name, code: code ?? '', message, after: performance.now() - start }
  }
  return { name: '', code: 'no error', message: '', after: performance.now() - start }
}
