/** Prints as JSON what the native library finds on this machine; fails if it cannot be loaded. */
import { native } from '../../dist/native.js'

process.stdout.write(JSON.stringify({ version: native.version(), cuda: native.cudaInfo(), nccl: native.ncclInfo() }))
