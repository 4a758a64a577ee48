/** The parameters that the Rust side passes to the kernels, compared with those the kernels take. */
import { StepError } from '../steps.mjs'
import { capture } from './capture.mjs'

/** What `cargo xtask kernel-table` prints: module, entry point, bytes and alignment, separated by tabs. */
export async function rustTable() {
  const { code, stdout, output } = await capture('cargo', [
    'run',
    '--quiet',
    '--package',
    'xtask',
    '--',
    'kernel-table',
  ])
  if (code !== 0) throw new StepError(`\`cargo xtask kernel-table\` failed:\n${output.trim()}`)
  return stdout.trim().split('\n').map(parse)
}

function parse(line) {
  const [module, entry, bytes, alignment] = line.split('\t')
  if (!module || !entry || !(Number(bytes) > 0) || !(Number(alignment) > 0)) {
    throw new StepError(`\`cargo xtask kernel-table\`: module, entry, bytes and alignment expected, got '${line}'`)
  }
  return { module, entry, bytes: Number(bytes), alignment: Number(alignment) }
}

/**
 * Compares in both directions.
 *
 * @returns {string[]} the differences
 */
export function compareEntries(found, table) {
  const expected = new Map(table.map((row) => [key(row), row]))
  const present = new Set(found.map(key))
  const differing = found.flatMap((entry) => describe(entry, expected.get(key(entry))))
  const missing = table.filter((row) => !present.has(key(row)))
  return [
    ...differing,
    ...missing.map((row) => `${key(row)}: the Rust side launches it, but the PTX has no such entry`),
  ]
}

function describe(entry, row) {
  if (!row) return [`${key(entry)}: the PTX has it, but the Rust side never launches it`]
  const [parameter, ...others] = entry.parameters
  if (!parameter || others.length > 0 || parameter.bytes === 0) {
    return [`${key(entry)}: expected one parameter, a structure, got ${entry.parameters.length} parameters`]
  }
  if (parameter.bytes === row.bytes && parameter.alignment === row.alignment) return []
  const size = ({ bytes, alignment }) => `${bytes} bytes aligned to ${alignment}`
  return [`${key(entry)}: the kernel takes ${size(parameter)}, the Rust side passes ${size(row)}`]
}

function key({ module, entry }) {
  return `${module}.ptx ${entry}`
}
