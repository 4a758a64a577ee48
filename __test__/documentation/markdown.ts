/** What the documentation's Markdown holds: its code blocks and its links. */

/** A fenced code block. */
export interface Block {
  /** The file it is in, relative to the root. */
  document: string
  /** Line of the opening fence, from 1. */
  line: number
  /** `ts`, `sh`, …; '' where none is given. */
  language: string
  /** What follows the language, such as `file=train.ts` or `launch=2`. */
  flags: ReadonlyMap<string, string>
  text: string
}

/** Name of the block in a test's title. */
export const title = ({ document, line, language }: Block): string => `${document}:${line} (${language})`

/** The fenced blocks of a document, in order. */
export function blocksOf(document: string, markdown: string): Block[] {
  const blocks: Block[] = []
  for (const match of markdown.matchAll(/^```(\w*)([^\n]*)\n([^]*?)^```$/gm)) {
    const [, language = '', info = '', text = ''] = match
    const line = markdown.slice(0, match.index).split('\n').length
    blocks.push({ document, line, language, flags: parseFlags(info), text })
  }
  return blocks
}

function parseFlags(info: string): Map<string, string> {
  const words = info.trim().split(/\s+/).filter(Boolean)
  return new Map(words.map((word) => [word.split('=')[0] as string, word.split('=').slice(1).join('=')]))
}

/** The document without its fenced blocks. */
export function prose(markdown: string): string {
  return markdown.replaceAll(/^```[^]*?^```$/gm, '')
}

/** Targets of links and pictures, without those on other servers. */
export function localLinks(markdown: string): string[] {
  const targets = [...prose(markdown).matchAll(/\]\(([^)\s]+)\)/g)].map(([, target]) => target as string)
  return targets.filter((target) => !/^[a-z]+:/.test(target))
}

/** The anchors of a document's headings, as GitHub makes them. */
export function anchorsOf(markdown: string): Set<string> {
  const headings = [...prose(markdown).matchAll(/^#+ (.*)$/gm)].map(([, text]) => text as string)
  return new Set(
    headings.map((text) =>
      text
        .toLowerCase()
        .replaceAll(/[^\p{L}\p{N}\s_-]/gu, '')
        .replaceAll(/\s/g, '-'),
    ),
  )
}

/** The rows of every table whose header begins with these cells; cells without the padding. */
export function tableRows(markdown: string, ...header: string[]): string[][] {
  const rows = markdown.split('\n').map((line) => (line.startsWith('|') ? cells(line) : null))
  const found: string[][] = []
  rows.forEach((row, at) => {
    if (row === null || header.some((name, i) => row[i] !== name)) return
    for (let next = at + 2; rows[next]; next += 1) found.push(rows[next] as string[])
  })
  return found
}

function cells(line: string): string[] {
  return line
    .split('|')
    .slice(1, -1)
    .map((cell) => cell.trim())
}
