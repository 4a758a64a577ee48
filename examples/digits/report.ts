/** What the demo shows at the end: a table, a sentence, and a picture of the three loss curves. */
import type { TrainingResult } from './train.ts'

/** One run of the demo. */
export interface Run {
  name: string
  /** What runs: for the table. */
  setting: string
  result: TrainingResult
  /** Largest absolute difference of a parameter or buffer from the first run's; null for that run. */
  difference: number | null
}

/** A table of the runs, as text. */
export function table(runs: readonly Run[]): string {
  const head = ['run', 'setting', 'test accuracy', 'last loss', 'seconds', 'state differs by']
  const rows = runs.map(({ name, setting, result, difference }) => [
    name,
    setting,
    `${(100 * result.accuracy).toFixed(2)} %`,
    lastLoss(result).toFixed(4),
    result.seconds.toFixed(1),
    difference === null ? '(reference)' : difference.toExponential(1),
  ])
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => (row[i] as string).length)))
  const line = (cells: readonly string[]): string => cells.map((cell, i) => cell.padEnd(widths[i] as number)).join('  ')
  return [line(head), line(widths.map((width) => '─'.repeat(width))), ...rows.map(line)].join('\n')
}

/** Whether the runs show what they are for: the second ends where the first does, and the third elsewhere. */
export function isAsExpected([, sync, local]: readonly [Run, Run, Run]): boolean {
  return 100 * (sync.difference as number) < (local.difference as number)
}

/** What the user just saw, from the numbers. */
export function sentence(runs: readonly [Run, Run, Run]): string {
  const [single, sync, local] = runs
  const percent = ({ result }: Run): string => `${(100 * result.accuracy).toFixed(1)} %`
  const off = ({ difference }: Run): string => (difference as number).toExponential(0)
  if (!isAsExpected(runs))
    return `Not as expected: the state is off by ${off(sync)} with SyncBatchNorm, ${off(local)} without.`
  return (
    `With SyncBatchNorm, ${sync.result.ranks} ranks with ${sync.result.batchSize} samples each learn what one process ` +
    `learns from ${single.result.batchSize} (${percent(sync)} and ${percent(single)} of the test images, parameters and running statistics ` +
    `within ${off(sync)}); with each rank's own statistics they end elsewhere (${percent(local)}, state off by ` +
    `${off(local)}).`
  )
}

/** Steps over which the picture averages: a single batch of 8 says little. */
const SMOOTHING = 25

function smoothed(losses: readonly number[]): number[] {
  return losses.map((_, i) => mean(losses.slice(Math.max(0, i + 1 - SMOOTHING), i + 1)))
}

function lastLoss({ losses }: TrainingResult): number {
  return mean(losses.slice(-SMOOTHING))
}

function mean(values: readonly number[]): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length
}

const WIDTH = 760
const HEIGHT = 420
const PLOT = { left: 64, right: 736, top: 76, bottom: 360 }
const STYLES = ['single', 'sync', 'local'] as const

/** Colours for both themes: the picture stands alone on light and dark pages. */
const STYLE_SHEET = `
  svg { color-scheme: light dark; }
  text { font: 13px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .legend { font-size: 12px; }
  .muted { fill: #59636e; }
  .paper { fill: #ffffff; stroke: #d1d9e0; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .curve { fill: none; stroke-linejoin: round; stroke-linecap: round; }
  .single { stroke: #9ec5fe; stroke-width: 7; }
  .sync { stroke: #0b5cad; stroke-width: 2; }
  .local { stroke: #d4580a; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .muted { fill: #9198a1; }
    .paper { fill: #0d1117; stroke: #3d444d; }
    .grid { stroke: #30363d; }
    .single { stroke: #274b7a; }
    .sync { stroke: #79c0ff; }
    .local { stroke: #ffa657; }
  }`

/** The curves as an SVG document. The loss is drawn on a logarithmic scale. */
export function chart(runs: readonly Run[]): string {
  const curves = runs.map(({ result }) => smoothed(result.losses))
  const steps = Math.max(...curves.map((curve) => curve.length))
  const all = curves.flat()
  const low = 10 ** Math.floor(Math.log10(Math.min(...all)))
  const high = 4 // a bit above ln 10, the loss of guessing
  const x = (step: number): number => PLOT.left + ((PLOT.right - PLOT.left) * step) / steps
  const y = (loss: number): number => {
    const part = Math.log(loss / low) / Math.log(high / low)
    return PLOT.bottom - (PLOT.bottom - PLOT.top) * Math.max(0, part)
  }
  const path = (curve: readonly number[]): string =>
    curve.map((loss, i) => `${i === 0 ? 'M' : 'L'}${x(i + 1).toFixed(1)} ${y(loss).toFixed(1)}`).join('')
  const drawn = curves.map((curve, i) => `<path class="curve ${STYLES[i]}" d="${path(curve)}"/>`)
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-labelledby="t d">`,
    `<title id="t">Training loss of three runs on the UCI digits</title>`,
    `<desc id="d">The curve of four ranks with SyncBatchNorm covers that of one process; the curve of four ranks with their own statistics stays above.</desc>`,
    `<style>${STYLE_SHEET}\n</style>`,
    `<rect class="paper" x="0.5" y="0.5" width="${WIDTH - 1}" height="${HEIGHT - 1}" rx="6"/>`,
    `<text class="title" x="${PLOT.left}" y="30">Training loss, UCI digits</text>`,
    ...axes(x, y, steps, low, high),
    ...drawn,
    ...legend(runs),
    '</svg>',
    '',
  ].join('\n')
}

function axes(
  x: (step: number) => number,
  y: (loss: number) => number,
  steps: number,
  low: number,
  high: number,
): string[] {
  const losses = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3].filter((loss) => loss >= low && loss <= high)
  const every = [10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((size) => steps / size <= 8) ?? steps
  const marks = Array.from({ length: Math.floor(steps / every) + 1 }, (_, i) => i * every)
  return [
    ...losses.flatMap((loss) => [
      `<line class="grid" x1="${PLOT.left}" x2="${PLOT.right}" y1="${y(loss)}" y2="${y(loss)}"/>`,
      `<text class="muted" x="${PLOT.left - 8}" y="${y(loss) + 4}" text-anchor="end">${loss}</text>`,
    ]),
    ...marks.map(
      (mark) => `<text class="muted" x="${x(mark)}" y="${PLOT.bottom + 20}" text-anchor="middle">${mark}</text>`,
    ),
    `<text class="muted" x="${(PLOT.left + PLOT.right) / 2}" y="${PLOT.bottom + 44}" text-anchor="middle">step (global batch of 8); mean of ${SMOOTHING} steps, logarithmic scale</text>`,
  ]
}

function legend(runs: readonly Run[]): string[] {
  const width = (PLOT.right - PLOT.left) / runs.length
  return runs.flatMap(({ setting }, i) => {
    const left = PLOT.left + i * width
    return [
      `<path class="curve ${STYLES[i]}" d="M${left + 4} 52h24"/>`,
      `<text x="${left + 34}" y="56" class="legend">${setting}</text>`,
    ]
  })
}
