/** What optimizers share: their parameters, the loop over gradients, state dicts. */
import { gradientOf } from '../autograd.ts'
import { atEachStep, capturePhase } from '../capture-phase.ts'
import { argumentError, makeError } from '../errors.ts'
import { Handle } from '../handle.ts'
import { native } from '../native.ts'
import type { BindingTensor } from '../native.ts'
import { describe, isLeaf, nativeOf, Tensor } from '../tensor.ts'
import type { Device } from '../types.ts'
import { loadOptimizerState, readOptimizerState } from './state-dict.ts'

/** What an optimizer remembers of one parameter: how many steps it took, and tensors of the parameter's shape. */
export interface ParameterState {
  /** Steps, as far as there is no `counter`. */
  step: number
  readonly moments: Map<string, Handle>
  /** int64 [1] on the parameter's GPU: steps, counted by the kernels that read it; from the first capture on. */
  counter: Handle | null
}

/** A parameter, its gradient and its state, as a step sees them. */
export interface StepOperands {
  readonly device: Device
  readonly parameter: BindingTensor
  readonly gradient: BindingTensor
  readonly state: ParameterState
  /** The tensor of this name in the state, made of zeros on first use, on the parameter's device. */
  moment(name: string): BindingTensor
}

/** Updates parameters by their gradients. */
export abstract class Optimizer {
  /** Learning rate; may be changed between steps. */
  lr: number
  /** @internal In the order given. */
  readonly parameters: readonly Tensor[]
  /** @internal By index of the parameter; absent before its first step. */
  readonly states = new Map<number, ParameterState>()

  /** @throws ArgumentError for no parameters, one twice, one that is no leaf, and a negative learning rate */
  constructor(parameters: Iterable<Tensor>, lr: number) {
    this.parameters = checkParameters([...parameters])
    this.lr = atLeastZero(lr, 'lr')
  }

  /**
   * Updates every parameter that has a gradient. Not recorded for backward.
   *
   * @throws DeviceError (ERR_CAPTURE) in a `cuda.capture` without a step before it that makes the state
   */
  step(): void {
    atLeastZero(this.lr, 'lr')
    this.parameters.forEach((tensor, index) => {
      const gradient = gradientOf(tensor)
      if (gradient) this.#update(index, tensor, gradient)
    })
  }

  #update(index: number, tensor: Tensor, gradient: Tensor): void {
    const state = this.states.get(index) ?? { step: 0, moments: new Map<string, Handle>(), counter: null }
    const moment = (name: string): BindingTensor => {
      const known = state.moments.get(name)
      const handle = known ? onDevice(known, tensor.device) : zerosLike(tensor)
      state.moments.set(name, handle)
      return handle.native
    }
    const operands = { parameter: nativeOf(tensor), gradient: nativeOf(gradient), device: tensor.device, state, moment }
    this.updateParameter(operands)
    this.states.set(index, state)
    atEachStep(() => {
      const current = this.states.get(index)
      if (current) current.step += 1
    })
  }

  /** Sets every parameter's `grad` to null. */
  zeroGrad(): void {
    for (const tensor of this.parameters) tensor.grad = null
  }

  /**
   * The state as tensors that can be saved: 'param_groups.0.lr' and the other options (float64 numbers), and for parameter
   * i after its first step 'state.i.step' (an int64 number) and PyTorch's tensors, such as 'state.i.momentum_buffer',
   * copied.
   */
  stateDict(): Map<string, Tensor> {
    return readOptimizerState(this)
  }

  /**
   * Takes over the options and the state of an optimizer of the same class over as many parameters of the same shapes.
   *
   * @throws ArgumentError (ERR_STATE_DICT), before any change, for keys that are missing or unknown and for shapes that
   *   differ
   */
  loadStateDict(state: ReadonlyMap<string, Tensor>): void {
    loadOptimizerState(this, state)
  }

  /** @internal Updates one parameter in place. */
  protected abstract updateParameter(operands: StepOperands): void

  /** @internal Options by PyTorch's names, as numbers. */
  abstract readOptions(): Record<string, number>

  /** @internal Takes over options, checked as in the constructor. */
  abstract writeOptions(options: Record<string, number>): void

  /** @internal Names of the tensors in each parameter's state. */
  abstract readonly momentNames: readonly string[]
}

function zerosLike(tensor: Tensor): Handle {
  requireNotRecording()
  const { shape, dtype, memoryFormat, device } = tensor
  return new Handle(native.tensorFull([...shape], 0, dtype, memoryFormat, device))
}

/** `handle` itself, or, where the parameter was moved since the last step, its values on the parameter's device. */
export function onDevice(handle: Handle, device: Device): Handle {
  if (handle.info.device === device) return handle
  const moved = new Handle(native.tensorTo(handle.native, null, null, device))
  handle.release()
  return moved
}

/** State that is made in a recording would start anew at every replay. */
export function requireNotRecording(): void {
  if (capturePhase() !== 'recording') return
  const message =
    'optimizer: expected a step before the recording, which makes its state; give cuda.capture a warmup of at least 1'
  throw makeError('ERR_CAPTURE', message)
}

function checkParameters(parameters: Tensor[]): Tensor[] {
  if (parameters.length === 0) throw argumentError('optimizer: expected at least one parameter, got none')
  if (new Set(parameters).size !== parameters.length) throw argumentError('optimizer: expected each parameter once')
  parameters.forEach((tensor, index) => {
    if (!(tensor instanceof Tensor)) {
      throw argumentError(`optimizer: expected parameter ${index} to be a Tensor, got ${describe(tensor)}`)
    }
    if (!isLeaf(tensor)) throw argumentError(`optimizer: expected parameter ${index} to be a leaf`)
  })
  return parameters
}

/** `value` if it is a finite number ≥ 0. */
export function atLeastZero(value: number, name: string): number {
  if (Number.isFinite(value) && value >= 0) return value
  throw argumentError(`optimizer: expected ${name} to be at least 0, got ${String(value)}`)
}
