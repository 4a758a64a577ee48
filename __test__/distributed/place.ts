/** Where the ranks of a scenario compute and how they exchange; a test chooses by environment variables. */
import { initProcessGroup, type Device, type InitProcessGroupOptions, type ProcessGroup } from 'syncbn'

/** Where this rank's tensors are: TEST_DEVICE, default the CPU. */
export const device = (process.env.TEST_DEVICE ?? 'cpu') as Device

/** Makes the default group, of the backend in TEST_BACKEND; by default the one that the library chooses for the device. */
export function join(options: InitProcessGroupOptions = {}): Promise<ProcessGroup> {
  const backend = process.env.TEST_BACKEND as 'tcp' | 'nccl' | undefined
  return initProcessGroup({ deviceId: device, ...(backend && { backend }), ...options })
}
