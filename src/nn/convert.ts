/**
 * Between batch norm and synchronized batch norm.
 *
 * Everything is checked before the first change. An object that several places hold is converted once and stays one.
 * Parameters, buffers and hooks are the same objects before and after. A conversion remembers what it replaced, so that
 * the way back restores the very layer, its class included.
 */
import type { ProcessGroup } from '../distributed/process-group.ts'
import { ArgumentError, argumentError } from '../errors.ts'
import { describe } from '../tensor.ts'
import { BatchNorm, BatchNormBase } from './batch-norm.ts'
import { membersOf, Module, shareHooksAndRegistrations } from './module.ts'
import { checkGroup, SyncBatchNorm } from './sync-batch-norm.ts'

/** A layer without tensors: those of another move in, as all its options do. */
const BARE = { affine: false, trackRunningStats: false }

/** What a converted layer was before. */
const originals = new WeakMap<SyncBatchNorm, BatchNormBase>()

/**
 * Replaces every batch norm layer in `module` by a SyncBatchNorm over `processGroup`, existing SyncBatchNorm layers
 * included. Kept: parameters, buffers and their identity, mode, dtype, device, hooks, submodules and further fields of a layer;
 * a layer in several places stays one.
 *
 * @param processGroup null: the default group at the time of the call
 * @returns `module` itself, or a new SyncBatchNorm if it is a batch norm layer
 * @throws ArgumentError (ERR_CONVERT), before any change, for a layer whose class overrides `forward` or `call`: what it
 *   computes besides would be lost
 */
export function convertSyncBatchNorm<M extends Module>(
  module: M,
  processGroup: ProcessGroup | null = null,
): M | SyncBatchNorm {
  const group = checkGroup(processGroup)
  for (const [path, layer] of checkModule(module).namedModules()) {
    if (layer instanceof BatchNormBase) checkConvertible(layer, path)
  }
  return replaceAll(module, (layer) => (layer instanceof BatchNormBase ? toSync(layer, group) : null))
}

/**
 * Undoes `convertSyncBatchNorm`: every SyncBatchNorm in `module` becomes the layer that it was, or, if it was made
 * directly, a batch norm layer for inputs of 2 or more dimensions.
 *
 * @returns `module` itself, or a batch norm layer if it is a SyncBatchNorm
 */
export function revertSyncBatchNorm<M extends Module>(module: M): M | BatchNormBase {
  return replaceAll(checkModule(module), (layer) => (layer instanceof SyncBatchNorm ? toLocal(layer) : null))
}

function checkModule<M extends Module>(module: M): M {
  if (module instanceof Module) return module
  throw argumentError(`expected a Module, got ${describe(module)}`)
}

/** Replaces modules at every place that holds them. `replace` gives null for what stays. */
function replaceAll<M extends Module, R extends Module>(root: M, replace: (module: Module) => R | null): M | R {
  const replacements = new Map<Module, R>()
  for (const module of [...root.modules()]) {
    const replacement = replace(module)
    if (replacement) replacements.set(module, replacement)
  }
  const parents = [...root.modules(), ...replacements.values()]
  for (const parent of parents) {
    for (const { field, value } of membersOf(parent).modules) {
      const replacement = replacements.get(value)
      if (replacement) Reflect.set(parent, field, replacement)
    }
  }
  return replacements.get(root) ?? root
}

function checkConvertible(layer: BatchNormBase, path: string): void {
  const { forward, call } = layer
  const known = forward === BatchNormBase.prototype.forward || forward === SyncBatchNorm.prototype.forward
  if (known && call === Module.prototype.call) return
  const name = path === '' ? 'the module itself' : `'${path}'`
  const message = `convertSyncBatchNorm: expected batch norm layers, but ${layer.constructor.name} (${name}) overrides ${known ? 'call' : 'forward'}`
  throw new ArgumentError('ERR_CONVERT', message)
}

function toSync(layer: BatchNormBase, processGroup: ProcessGroup | null): SyncBatchNorm {
  const sync = new SyncBatchNorm(layer.numFeatures, BARE)
  moveState(layer, sync)
  sync.processGroup = processGroup
  const original = layer instanceof SyncBatchNorm ? originals.get(layer) : layer
  if (original) originals.set(sync, original)
  return sync
}

function toLocal(sync: SyncBatchNorm): BatchNormBase {
  const local = originals.get(sync) ?? new BatchNorm(sync.numFeatures, BARE)
  moveState(sync, local)
  return local
}

/** Gives `to` the fields (mode, parameters and buffers among them), registrations and hooks of `from`. */
function moveState(from: BatchNormBase, to: BatchNormBase): void {
  for (const [field, value] of Object.entries(from)) {
    if (field !== 'processGroup') Reflect.set(to, field, value)
  }
  shareHooksAndRegistrations(from, to)
}
