/** A picture of the layer results: how long each layer takes, against BatchNorm in one process. */
import { groupBy, label, problemName, type LayerResult, type Results } from './results.ts'

const WIDTH = 760
const LEFT = 250
const RIGHT = 700
const TOP = 104
/** Entries of the legend side by side: as many as fit with every system font. */
const LEGEND_COLUMNS = 3
const BAR = 11
const GAP = 14
const COLORS = ['s0', 's1', 's2', 's3', 's4']

const STYLE_SHEET = `
  text { font: 12px system-ui, -apple-system, 'Segoe UI', sans-serif; fill: #1f2328; }
  .title { font-size: 16px; font-weight: 600; }
  .muted { fill: #59636e; }
  .paper { fill: #ffffff; stroke: #d1d9e0; }
  .grid { stroke: #d1d9e0; }
  .s0 { fill: #8c959f; } .s1 { fill: #9ec5fe; } .s2 { fill: #3d8bfd; } .s3 { fill: #0b4ea2; } .s4 { fill: #d4580a; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .muted { fill: #9198a1; }
    .paper { fill: #0d1117; stroke: #3d444d; }
    .grid { stroke: #30363d; }
    .s0 { fill: #6e7681; } .s1 { fill: #1f4b85; } .s2 { fill: #388bfd; } .s3 { fill: #a5d6ff; } .s4 { fill: #ffa657; }
  }`

/** The chart as an SVG document: modules on contiguous tensors, forward and backward together. */
export function chart({ layers, machine }: Results): string {
  const shown = layers.filter(({ path, memoryFormat }) => path !== 'functional' && memoryFormat === 'contiguous')
  const groups = [...groupBy(shown, problemName).values()]
  const labels = [...new Set(shown.map(label))]
  const ratios = groups.map((rows) => rows.map((row) => total(row) / total(rows[0] as LayerResult)))
  const longest = Math.max(1, ...ratios.flat())
  const x = (ratio: number): number => LEFT + ((RIGHT - LEFT) * ratio) / longest
  const groupHeight = labels.length * BAR + GAP
  const bottom = TOP + groups.length * groupHeight
  const bars = groups.flatMap((rows, g) => {
    const top = TOP + g * groupHeight
    const { network, shape, forwardMs, backwardMs } = rows[0] as LayerResult
    return [
      `<text x="${LEFT - 10}" y="${top + groupHeight / 2 - 6}" text-anchor="end">${network} (${shape.join(', ')})</text>`,
      `<text class="muted" x="${LEFT - 10}" y="${top + groupHeight / 2 + 9}" text-anchor="end">${(forwardMs + backwardMs).toFixed(2)} ms in one process</text>`,
      ...rows.map((row, i) => bar(row, labels.indexOf(label(row)), top + i * BAR, x, ratios[g]?.[i] as number)),
    ]
  })
  const height = bottom + 40
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-labelledby="t">`,
    `<title id="t">Time of batch norm layers, relative to BatchNorm in one process</title>`,
    `<style>${STYLE_SHEET}\n</style>`,
    `<rect class="paper" x="0.5" y="0.5" width="${WIDTH - 1}" height="${height - 1}" rx="6"/>`,
    `<text class="title" x="20" y="30">Forward and backward, relative to BatchNorm in one process</text>`,
    ...legend(labels),
    ...grid(longest, x, bottom),
    ...bars,
    `<text class="muted" x="20" y="${height - 12}">${machine.processor}, ${machine.cores} cores; the ranks share them and split the batch. Shorter is faster.</text>`,
    '</svg>',
    '',
  ].join('\n')
}

function total({ forwardMs, backwardMs }: LayerResult): number {
  return forwardMs + backwardMs
}

function bar(row: LayerResult, color: number, y: number, x: (ratio: number) => number, ratio: number): string {
  const title = `${label(row)}: ${total(row).toFixed(3)} ms`
  return (
    `<rect class="${COLORS[color]}" x="${LEFT}" y="${y}" width="${(x(ratio) - LEFT).toFixed(1)}" height="${BAR - 2}"><title>${title}</title></rect>` +
    `<text class="muted" x="${(x(ratio) + 5).toFixed(1)}" y="${y + BAR - 3}" style="font-size:10px">${ratio.toFixed(2)}</text>`
  )
}

function legend(labels: readonly string[]): string[] {
  const width = (WIDTH - 40) / LEGEND_COLUMNS
  return labels.flatMap((text, i) => {
    const [left, top] = [20 + (i % LEGEND_COLUMNS) * width, 46 + 20 * Math.floor(i / LEGEND_COLUMNS)]
    return [
      `<rect class="${COLORS[i]}" x="${left}" y="${top}" width="12" height="12"/>`,
      `<text x="${left + 18}" y="${top + 10}">${text}</text>`,
    ]
  })
}

function grid(longest: number, x: (ratio: number) => number, bottom: number): string[] {
  const every = [0.25, 0.5, 1, 2, 5, 10, 20].find((size) => longest / size <= 6) ?? 50
  return Array.from({ length: Math.floor(longest / every) + 1 }, (_, i) => {
    const at = x(i * every).toFixed(1)
    return `<line class="grid" x1="${at}" x2="${at}" y1="${TOP - 8}" y2="${bottom - GAP / 2}"/>`
  })
}
