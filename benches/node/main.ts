/**
 * The benchmark.
 *
 *   npm run bench -- [--device cpu|cuda] [--quick] [--peers] [--json]
 *
 * --device  cpu (default): layers on several ranks of this machine; cuda: the kernels of a GPU
 * --quick   a few small problems, few iterations
 * --peers   also PyTorch, alternating with ours (SYNCBN_PYTHON: a Python with torch)
 * --json    prints JSON instead of tables
 */
import { options } from './options.ts'

if (options.device === 'cuda') await import('./cuda.ts')
else await import('./cpu.ts')
