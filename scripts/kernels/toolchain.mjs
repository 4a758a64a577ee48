/** Where nvcc and ptxas come from: SYNCBN_NVCC, or wheels installed into target/nvcc. */
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'

import { exists, root, StepError } from '../steps.mjs'
import { capture } from './capture.mjs'

const REQUIREMENTS = join(root, 'scripts', 'nvcc-requirements.txt')

/** There is no compiler, and none can be installed here. */
export class MissingToolchain extends StepError {}

/**
 * The compiler and the assembler, installed first if need be.
 *
 * @returns {Promise<{ nvcc: string, ptxas: string }>} their paths
 */
export async function toolchain() {
  // nvcc leaves preprocessing to the host's compiler.
  if (!exists('g++')) throw new MissingToolchain('nvcc needs g++, which is not installed (Debian: build-essential).')
  const nvcc = process.env.SYNCBN_NVCC ? resolve(process.env.SYNCBN_NVCC) : await installed()
  const tools = { nvcc, ptxas: join(dirname(nvcc), 'ptxas') }
  for (const [name, path] of Object.entries(tools)) {
    // A StepError, since whoever names a compiler does not want the check skipped.
    if (!isFile(path)) throw new StepError(`There is no ${name} at ${path}.`)
  }
  return tools
}

/** nvcc of the wheels, which are installed anew whenever the requirements change. */
async function installed() {
  const folder = join(process.env.CARGO_TARGET_DIR ?? join(root, 'target'), 'nvcc')
  const requirements = readFileSync(REQUIREMENTS, 'utf8')
  // Written last, so that an installation that broke off is not taken for one.
  const marker = join(folder, 'installed-requirements.txt')
  if (!isFile(marker) || readFileSync(marker, 'utf8') !== requirements) {
    await install(folder)
    writeFileSync(marker, requirements)
  }
  return findNvcc(folder)
}

async function install(folder) {
  if (!exists('python3')) throw new MissingToolchain('python3 is not installed; nvcc is installed with its pip.')
  process.stdout.write(`installing nvcc into ${folder}\n`)
  await step('python3', ['-m', 'venv', '--clear', folder], 'python3 cannot make an environment (Debian: python3-venv)')
  const python = join(folder, 'bin', 'python')
  const options = ['--quiet', '--disable-pip-version-check', '--no-deps', '--only-binary', ':all:']
  await step(python, ['-m', 'pip', 'install', ...options, '-r', REQUIREMENTS], 'pip cannot install nvcc')
}

async function step(program, args, sentence) {
  const { code, output } = await capture(program, args)
  if (code !== 0) throw new MissingToolchain(`${sentence}:\n${output.trim()}`)
}

function findNvcc(folder) {
  const libraries = join(folder, 'lib')
  const pythons = readdirSync(libraries).filter((name) => name.startsWith('python3'))
  const candidates = pythons.flatMap((python) => {
    const packages = join(libraries, python, 'site-packages', 'nvidia')
    return readdirSync(packages).map((name) => join(packages, name, 'bin', 'nvcc'))
  })
  const nvcc = candidates.find(isFile)
  if (!nvcc) throw new MissingToolchain(`The wheels of ${REQUIREMENTS} have no nvcc.`)
  return nvcc
}

function isFile(path) {
  return statSync(path, { throwIfNoEntry: false })?.isFile() ?? false
}
