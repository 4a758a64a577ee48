/**
 * Copies a process's output to ours line by line, each line with its rank before it, and remembers the last lines.
 */
import { once } from 'node:events'
import type { Readable, Writable } from 'node:stream'

/** A line longer than this is cut, so that a process that never ends a line cannot fill our memory. */
const LONGEST_LINE = 64 * 1024

/** The last lines of one process, for the message after a failure. */
export class Tail {
  readonly #lines: string[] = []
  readonly #limit: number

  constructor(limit: number) {
    this.#limit = limit
  }

  push(line: string): void {
    this.#lines.push(line)
    if (this.#lines.length > this.#limit) this.#lines.shift()
  }

  get lines(): readonly string[] {
    return this.#lines
  }
}

/**
 * Copies `source` to `target` until it ends, with `prefix` before every line; keeps to the target's pace.
 *
 * @param tail also gets every line, without the prefix
 * @returns resolves when the source has ended and its last line is written
 */
export async function copyLines(source: Readable, target: Writable, prefix: string, tail: Tail): Promise<void> {
  const emit = async (lines: readonly string[]): Promise<void> => {
    for (const line of lines) tail.push(line)
    if (lines.length === 0 || target.destroyed) return
    const text = lines.map((line) => `${prefix}${line}\n`).join('')
    if (!target.write(text)) await Promise.race([once(target, 'drain'), once(target, 'close')])
  }
  source.setEncoding('utf8')
  let rest = ''
  for await (const chunk of source) {
    const lines = (rest + chunk).split(/\r?\n/)
    rest = lines.pop() as string
    if (rest.length > LONGEST_LINE) {
      lines.push(rest)
      rest = ''
    }
    await emit(lines)
  }
  if (rest !== '') await emit([rest])
}
