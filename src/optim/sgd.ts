/** Stochastic gradient descent, as torch.optim.SGD. */
import { argumentError } from '../errors.ts'
import { native } from '../native.ts'
import type { Tensor } from '../tensor.ts'
import { atLeastZero, Optimizer } from './optimizer.ts'
import type { StepOperands } from './optimizer.ts'

const MOMENTUM_BUFFER = 'momentum_buffer'

/** Options of SGD. */
export interface SGDOptions {
  /** Learning rate. */
  lr: number
  /** Weight of the momentum buffer. Default: 0, no momentum. */
  momentum?: number
  /** Share of the gradient that is kept out of the momentum buffer. Default: 0. */
  dampening?: number
  /** L2 penalty, added to the gradient. Default: 0. */
  weightDecay?: number
  /** Nesterov's form; needs momentum and no dampening. Default: false. */
  nesterov?: boolean
}

/**
 * g = gradient + weightDecay·p; b = momentum·b + (1 − dampening)·g, at first g; p −= lr·b, or with Nesterov
 * lr·(g + momentum·b).
 */
export class SGD extends Optimizer {
  #options: Required<Omit<SGDOptions, 'lr'>>

  /** @throws ArgumentError for a negative option, and for Nesterov without momentum or with dampening */
  constructor(parameters: Iterable<Tensor>, options: SGDOptions) {
    super(parameters, options?.lr)
    const { momentum = 0, dampening = 0, weightDecay = 0, nesterov = false } = options
    this.#options = checkOptions({ momentum, dampening, weightDecay, nesterov })
  }

  override get momentNames(): readonly string[] {
    return this.#options.momentum === 0 ? [] : [MOMENTUM_BUFFER]
  }

  protected override updateParameter({ parameter, gradient, state, moment }: StepOperands): void {
    const { momentum } = this.#options
    const first = !state.moments.has(MOMENTUM_BUFFER)
    const buffer = momentum === 0 ? null : moment(MOMENTUM_BUFFER)
    native.sgdStep(parameter, gradient, buffer, { lr: this.lr, ...this.#options, first })
  }

  override readOptions(): Record<string, number> {
    const { momentum, dampening, weightDecay, nesterov } = this.#options
    return { lr: this.lr, momentum, dampening, weight_decay: weightDecay, nesterov: Number(nesterov) }
  }

  override writeOptions(options: Record<string, number>): void {
    const { lr = 0, momentum = 0, dampening = 0, weight_decay: weightDecay = 0, nesterov = 0 } = options
    const checked = checkOptions({ momentum, dampening, weightDecay, nesterov: nesterov !== 0 })
    this.lr = atLeastZero(lr, 'lr')
    this.#options = checked
  }
}

function checkOptions(options: Required<Omit<SGDOptions, 'lr'>>): Required<Omit<SGDOptions, 'lr'>> {
  atLeastZero(options.momentum, 'momentum')
  atLeastZero(options.weightDecay, 'weightDecay')
  if (!Number.isFinite(options.dampening)) {
    throw argumentError(`SGD: expected dampening to be a finite number, got ${String(options.dampening)}`)
  }
  if (options.nesterov && (options.momentum === 0 || options.dampening !== 0)) {
    throw argumentError('SGD: expected momentum and no dampening with nesterov')
  }
  return options
}
