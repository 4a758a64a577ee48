/** What the machine has: programs, Python's libraries, the environment in which the parts run. */
import { join } from 'node:path'

import { execute } from './execute.mjs'

/** Of a Python with torch: its versions, and where its wheels keep NCCL and cuBLAS. */
const PYTHON_FACTS = `
import glob, json, os, sys, torch
facts = {"python": sys.version.split()[0], "torch": torch.__version__, "torchCuda": torch.version.cuda}
if torch.cuda.is_available():
    facts["cudnn"] = torch.backends.cudnn.version()
    facts["torchNccl"] = ".".join(map(str, torch.cuda.nccl.version()))
for packages in {os.path.dirname(os.path.dirname(torch.__file__)), *sys.path}:
    for name, pattern in {"nccl": "nccl/lib/libnccl.so.2", "cublas": "*/lib/libcublas.so.1[23]"}.items():
        for found in glob.glob(os.path.join(packages, "nvidia", pattern)):
            facts.setdefault(name, found)
print(json.dumps(facts))
`

/**
 * What parts run with.
 *
 * @typedef {object} Machine
 * @property {boolean} fake on fakes instead of a GPU
 * @property {string} results the folder for logs
 * @property {string} python
 * @property {Record<string, string> | null} torch facts of a Python with torch
 * @property {string | null} driver the driver's own version
 * @property {{ version: string, cuda: object, nccl: object } | null} native what the library found
 * @property {NodeJS.ProcessEnv} env
 */

/** @returns {Promise<Machine>} */
export async function inspect(results) {
  const fake = process.env.FAKE === '1'
  const python = process.env.SYNCBN_PYTHON ?? 'python3'
  const env = { ...process.env, SYNCBN_PYTHON: python, REQUIRE_GPU: '1', SYNCBN_TEST_DEVICE: 'cuda:0' }
  if (fake) Object.assign(env, { LD_LIBRARY_PATH: join(process.cwd(), 'fakes'), SYNCBN_FAKE_CUDA: '1' })
  const ask = async (program, args) => {
    const { passed, stdout } = await execute(program, args, { env, log: join(results, 'machine.log'), seconds: 120 })
    return passed ? stdout.trim() : null
  }
  const torch = fake ? null : JSON.parse((await ask(python, ['-c', PYTHON_FACTS])) ?? 'null')
  // The library looks for wheels where they usually are; here they are known.
  if (torch?.nccl !== undefined) env.SYNCBN_NCCL_PATH ??= torch.nccl
  if (torch?.cublas !== undefined) env.SYNCBN_CUBLAS_PATH ??= torch.cublas
  const query = ['--query-gpu=driver_version', '--format=csv,noheader']
  const driver = fake ? null : await ask('nvidia-smi', query)
  const native = JSON.parse((await ask('./node', ['scripts/gpu/native-facts.mjs'])) ?? 'null')
  return { fake, results, python, torch, driver, native, env }
}

/** What results are of. */
export function describe({ fake, native, driver, torch }) {
  const card = native?.cuda.devices[0]
  return {
    fake,
    card: card?.name ?? null,
    computeCapability: card?.computeCapability ?? null,
    gpus: native?.cuda.devices.length ?? 0,
    driver,
    cuda: native?.cuda.driver ?? native?.cuda.error ?? null,
    nccl: native?.nccl.version ?? native?.nccl.error ?? null,
    products: card?.gemm ?? null,
    torch,
    node: process.versions.node,
    syncbn: native?.version ?? null,
  }
}
