/** One rank of a test: runs a function of a scenario file and sends back what it returns. See ranks.ts. */
import { pathToFileURL } from 'node:url'

import { EXIT } from './ranks.ts'

/** Tells the test how far this rank is. */
export type Report = (stage: string) => Promise<void>
/** What a scenario file exports. */
export type Scenario<A = unknown> = (args: A, report: Report) => Promise<unknown>

function send(message: unknown): Promise<void> {
  return new Promise((resolve, reject) =>
    process.send?.(message, (error: Error | null) => (error ? reject(error) : resolve())),
  )
}

async function run(url: string, name: string, args: unknown): Promise<void> {
  const scenarios = (await import(url)) as Record<string, Scenario>
  const scenario = scenarios[name]
  if (scenario === undefined) throw new Error(`${url} has no function ${name}`)
  const value = await scenario(args, (stage) => send({ kind: 'stage', stage }))
  await send({ kind: 'value', value })
  process.disconnect()
}

if (import.meta.url === pathToFileURL(process.argv[1] as string).href) {
  const [, , url, name, args] = process.argv
  if (url === undefined || name === undefined || args === undefined) process.exit(EXIT.notStarted)
  run(url, name, JSON.parse(args)).catch((error: unknown) => {
    console.error(error)
    process.exit(EXIT.scenarioFailed)
  })
}
