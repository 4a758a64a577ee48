/** Process groups, collectives and data-parallel training: torch.distributed's names. */
export {
  allGather,
  allReduce,
  barrier,
  broadcast,
  monitoredBarrier,
  type Collectable,
  type ReduceOp,
} from './collectives.ts'
export { DistributedDataParallel, type DistributedDataParallelOptions } from './ddp.ts'
export {
  destroyProcessGroup,
  getLocalRank,
  getRank,
  getWorldSize,
  initProcessGroup,
  isInitialized,
  newGroup,
  newSubgroups,
  type InitProcessGroupOptions,
  type NewGroupOptions,
  type ProcessGroup,
} from './process-group.ts'
export type { Work } from './work.ts'
