/** Batch normalization over the batches of all ranks of a process group. */
import type { ProcessGroup } from '../distributed/process-group.ts'
import { argumentError, ShapeError } from '../errors.ts'
import { normalize } from '../ops/batch-norm.ts'
import { syncGroup } from '../sync-group.ts'
import { describe } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'
import { BatchNormBase, checkAtLeast2D } from './batch-norm.ts'
import type { BatchNormOptions } from './batch-norm.ts'

/**
 * Batch norm of (N, C, …) whose training statistics are those of the batches of all ranks together: every rank must call
 * it, with any N and sizes of its own. In evaluation mode, and in a group of one rank, nothing is exchanged and the
 * result is exactly that of batch norm.
 */
export class SyncBatchNorm extends BatchNormBase {
  /** The ranks to synchronize over; null: the default group at the time of the call. */
  processGroup: ProcessGroup | null

  /** @param options those of batch norm, and `processGroup`: default null, the default group at the time of the call */
  constructor(numFeatures: number, options: BatchNormOptions & { processGroup?: ProcessGroup | null } = {}) {
    super(numFeatures, options)
    this.processGroup = checkGroup(options.processGroup ?? null)
  }

  /**
   * (N, C, …) → the same shape, dtype and memory format.
   *
   * @throws ShapeError for fewer than 2 dimensions, no channels, or one value per channel over all ranks in training;
   *   DistributedError in training before `initProcessGroup` where WORLD_SIZE is above 1, in training on a rank that the
   *   group does not have, and when the exchange fails
   */
  override forward(input: Tensor): Tensor {
    this.checkInput(input)
    const group = this.training ? syncGroup(this.processGroup, 'SyncBatchNorm') : null
    return normalize(input, this.normalizeArguments(), group)
  }

  protected override checkInput(input: Tensor): void {
    checkAtLeast2D(input)
    if (input.shape[1] !== 0) return
    throw new ShapeError('ERR_SHAPE', 'SyncBatchNorm number of input channels should be non-zero')
  }
}

/** `group` if it can be one; whether this rank is a member is checked when it is used. */
export function checkGroup(group: ProcessGroup | null): ProcessGroup | null {
  if (group === null || (typeof group === 'object' && typeof group.size === 'number')) return group
  throw argumentError(`processGroup: expected a process group or null, got ${describe(group)}`)
}
