/** Finding a port for a rendezvous. */
import { randomInt } from 'node:crypto'
import { createServer } from 'node:net'

/**
 * Ports from here on, as many as `SPAN`, are below the range from which systems choose the ports of outgoing
 * connections: one of those could take a port between our look and the rendezvous.
 */
const FIRST = 12_000
const SPAN = 20_000
const ATTEMPTS = 100

/**
 * A port of `host`, an address of this machine, that nothing listens on.
 *
 * @throws what listening throws: the host is none of this machine's addresses, or none of many ports is free
 */
export async function freePort(host = '127.0.0.1'): Promise<number> {
  for (let attempt = 1; ; attempt += 1) {
    const port = FIRST + randomInt(SPAN)
    try {
      await listenOnce(host, port)
      return port
    } catch (error) {
      const taken = (error as NodeJS.ErrnoException).code === 'EADDRINUSE'
      if (!taken || attempt === ATTEMPTS) throw error
    }
  }
}

function listenOnce(host: string, port: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const server = createServer()
    server.once('error', reject)
    server.listen(port, host, () => server.close(() => resolve()))
  })
}
