/**
 * Runs the parts on this machine, one after another; started by run.sh.
 *
 *   node scripts/gpu/run.mjs RESULTS [PART...]
 *
 * RESULTS/results.json is written anew after every part, so that it is there whatever happens later.
 */
import { writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'

import { describe, inspect } from './machine.mjs'
import { Failure, Missing, PARTS, Skipped } from './parts.mjs'

async function attempt(name, machine) {
  const start = performance.now()
  const ended = (status, rest) => ({
    name,
    status,
    seconds: Number(((performance.now() - start) / 1000).toFixed(1)),
    ...rest,
  })
  try {
    return ended('passed', { details: await PARTS[name](machine) })
  } catch (error) {
    if (error instanceof Missing) return ended('missing', { why: error.message })
    if (error instanceof Skipped) return ended('skipped', { why: error.message })
    return ended('failed', { why: error instanceof Failure ? error.message : String(error?.stack) })
  }
}

const [folder, ...wanted] = process.argv.slice(2)
const unknown = wanted.find((name) => !(name in PARTS))
if (folder === undefined || unknown !== undefined) {
  process.stderr.write(`run.mjs RESULTS [PART...]; the parts are ${Object.keys(PARTS).join(', ')}\n`)
  process.exit(2)
}
const machine = await inspect(resolve(folder))
const results = { ...describe(machine), parts: [] }
if (machine.fake) process.stdout.write('ON FAKES: not a GPU result\n')
for (const name of wanted.length > 0 ? wanted : Object.keys(PARTS)) {
  const part = await attempt(name, machine)
  results.parts.push(part)
  const { status, seconds, why } = part
  process.stdout.write(`${status.padEnd(8)} ${name}, ${seconds} s${why === undefined ? '' : `: ${why}`}\n`)
  writeFileSync(join(folder, 'results.json'), `${JSON.stringify(results, null, 2)}\n`)
}
const failed = results.parts.filter(({ status }) => status === 'failed')
process.stdout.write(
  failed.length === 0 ? 'no part failed\n' : `failed: ${failed.map(({ name }) => name).join(', ')}\n`,
)
process.exitCode = failed.length === 0 ? 0 : 1
