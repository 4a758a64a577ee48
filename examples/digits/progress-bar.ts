/** How far a training is. */
import type { Progress } from './train.ts'

const BAR_WIDTH = 30

/** A bar that redraws itself on a terminal, and one line at each quarter elsewhere. */
export class ProgressBar {
  readonly #title: string
  #quarter = 0

  constructor(title: string) {
    this.#title = title
  }

  show({ step, steps, loss }: Progress): void {
    const part = step / steps
    const filled = Math.round(part * BAR_WIDTH)
    const bar = '█'.repeat(filled) + '░'.repeat(BAR_WIDTH - filled)
    const text = `${this.#title.padEnd(28)} ${bar} ${String(step).padStart(5)}/${steps}  loss ${loss.toFixed(3)}`
    if (process.stdout.isTTY) process.stdout.write(`\r${text}`)
    else if (Math.floor(4 * part) > this.#quarter) console.log(text)
    this.#quarter = Math.floor(4 * part)
  }

  end(): void {
    if (process.stdout.isTTY) process.stdout.write('\n')
  }
}
