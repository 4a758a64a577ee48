/** Running a program with a deadline, its output kept in a log. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'

/**
 * What became of a program.
 *
 * @typedef {object} Ended
 * @property {boolean} passed it ended by itself with exit code 0
 * @property {string} why how it ended otherwise; '' if it passed
 * @property {string} stdout
 * @property {string} output both streams
 */

/**
 * Runs a program in this folder. When its time is over it is killed, with everything it started in its process group.
 *
 * @param {string} program
 * @param {readonly string[]} args
 * @param {{ env: NodeJS.ProcessEnv, log: string, seconds: number }} options `log`: the file its output is added to
 * @returns {Promise<Ended>}
 */
export async function execute(program, args, { env, log, seconds }) {
  const file = createWriteStream(log, { flags: 'a' })
  file.write(`$ ${[program, ...args].join(' ')}\n`)
  const child = spawn(program, args, { env, detached: true, stdio: ['ignore', 'pipe', 'pipe'] })
  let [stdout, output] = ['', '']
  child.stdout.setEncoding('utf8').on('data', (text) => (stdout += text))
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', (text) => {
      output += text
      file.write(text)
    })
  }
  let late = false
  const timer = setTimeout(() => {
    late = true
    killGroup(child)
  }, 1000 * seconds)
  const why = await ending(child)
  clearTimeout(timer)
  killGroup(child)
  const reason = late ? `took more than ${seconds} s` : why
  file.end(`${reason === '' ? 'passed' : reason}\n\n`)
  await once(file, 'finish')
  return { passed: reason === '', why: reason, stdout, output }
}

/** How a process ended; '' for exit code 0. */
function ending(child) {
  return new Promise((resolve) => {
    child.once('error', (error) => resolve(error.message))
    child.once('close', (code, signal) => resolve(code === 0 ? '' : (signal ?? `exit code ${code}`)))
  })
}

function killGroup(child) {
  try {
    if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
  } catch {
    // The group has ended.
  }
}
