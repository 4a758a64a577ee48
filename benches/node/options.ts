/** The benchmark's options. */
import { parseArgs } from 'node:util'

const DEVICES = ['cpu', 'cuda'] as const

const { values } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    peers: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    device: { type: 'string', default: 'cpu' },
  },
})

function deviceOf(name: string): (typeof DEVICES)[number] {
  const device = DEVICES.find((known) => known === name)
  if (device === undefined) throw new Error(`--device takes ${DEVICES.join(' or ')}, got '${name}'`)
  return device
}

export const options = { ...values, device: deviceOf(values.device) }

/** Progress goes to standard error, so that standard output is the result alone. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`)
}
