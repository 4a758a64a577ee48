/** Adam with decoupled weight decay, as torch.optim.AdamW. */
import { capturePhase } from '../capture-phase.ts'
import { argumentError } from '../errors.ts'
import { Handle } from '../handle.ts'
import { native } from '../native.ts'
import type { BindingTensor } from '../native.ts'
import type { Tensor } from '../tensor.ts'
import { atLeastZero, onDevice, Optimizer, requireNotRecording } from './optimizer.ts'
import type { StepOperands } from './optimizer.ts'

/** Options of AdamW. */
export interface AdamWOptions {
  /** Learning rate. Default: 1e-3. */
  lr?: number
  /** Decay of the averages of the gradient and of its square. Default: [0.9, 0.999]. */
  betas?: [number, number]
  /** Added to the denominator. Default: 1e-8. */
  eps?: number
  /** Share of the parameter, times the learning rate, that is taken off each step. Default: 1e-2. */
  weightDecay?: number
}

interface Settings {
  readonly beta1: number
  readonly beta2: number
  readonly eps: number
  readonly weightDecay: number
}

/** Loshchilov and Hutter, "Decoupled weight decay regularization", 2019. */
export class AdamW extends Optimizer {
  readonly momentNames: readonly string[] = ['exp_avg', 'exp_avg_sq']
  #settings: Settings

  /** @throws ArgumentError for a negative option, and for betas outside [0, 1) */
  constructor(parameters: Iterable<Tensor>, options: AdamWOptions = {}) {
    super(parameters, options.lr ?? 1e-3)
    const [beta1, beta2] = options.betas ?? [0.9, 0.999]
    this.#settings = checkSettings({ beta1, beta2, eps: options.eps ?? 1e-8, weightDecay: options.weightDecay ?? 1e-2 })
  }

  protected override updateParameter(operands: StepOperands): void {
    const { parameter, gradient, state, moment } = operands
    const counter = stepCounter(operands)
    const options = { lr: this.lr, ...this.#settings, step: state.step + 1 }
    native.adamwStep(parameter, gradient, moment('exp_avg'), moment('exp_avg_sq'), options, counter)
  }

  override readOptions(): Record<string, number> {
    const { beta1, beta2, eps, weightDecay } = this.#settings
    return { lr: this.lr, beta1, beta2, eps, weight_decay: weightDecay }
  }

  override writeOptions(options: Record<string, number>): void {
    const { lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay: weightDecay = 0 } = options
    const settings = checkSettings({ beta1, beta2, eps, weightDecay })
    this.lr = atLeastZero(lr, 'lr')
    this.#settings = settings
  }
}

/**
 * The step counter on the parameter's GPU, which the kernel reads and advances; null while the host counts. A capture
 * needs the former: what the host passes to a kernel is the same at every replay.
 */
function stepCounter({ device, state }: StepOperands): BindingTensor | null {
  if (state.counter) {
    if (device !== 'cpu') state.counter = onDevice(state.counter, device)
    else {
      state.step = native.tensorItem(state.counter.native)
      state.counter.release()
      state.counter = null
    }
  } else if (device !== 'cpu' && capturePhase() !== 'none') {
    requireNotRecording()
    state.counter = new Handle(native.tensorFull([1], state.step, 'int64', 'contiguous', device))
  }
  return state.counter?.native ?? null
}

function checkSettings(settings: Settings): Settings {
  for (const beta of [settings.beta1, settings.beta2]) {
    if (!(beta >= 0 && beta < 1)) throw argumentError(`AdamW: expected betas in [0, 1), got ${String(beta)}`)
  }
  atLeastZero(settings.eps, 'eps')
  atLeastZero(settings.weightDecay, 'weightDecay')
  return settings
}
