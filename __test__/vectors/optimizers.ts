/** Optimizers on PyTorch's vectors: the bodies, for any device. */
import type { ExecutionContext } from 'ava'
import { AdamW, parameter, SGD, type Device, type Optimizer, type Tensor } from 'syncbn'

import { assertClose, ROUNDING, scaleOf } from '../helpers/closeness.ts'
import { loadCases } from '../helpers/fixtures.ts'

/** What a case says. */
export interface Config {
  optimizer: 'SGD' | 'AdamW'
  options: { lr: number }
  steps: number
}

function make(config: Config, parameters: Tensor[]): Optimizer {
  return config.optimizer === 'SGD' ? new SGD(parameters, config.options) : new AdamW(parameters, config.options)
}

/** Five steps of every case of PyTorch. */
export async function checkSteps(t: ExecutionContext, device: Device): Promise<void> {
  for (const one of await loadCases<Config>('optim', device)) {
    const parameters = [0, 1].map((i) => parameter(one.get(`parameter.${i}`).clone()))
    const optimizer = make(one.config, parameters)
    for (let step = 0; step < one.config.steps; step++) {
      parameters.forEach((p, i) => {
        p.grad = one.copy(`gradient.${step}.${i}`)
      })
      optimizer.step()
      parameters.forEach((p, i) => {
        const expected = one.get(`parameter.${step}.${i}`)
        assertClose(t, p, expected, 16 * ROUNDING[one.dtype]! * scaleOf(expected), `${one.name} parameter.${step}.${i}`)
      })
    }
  }
}

/** A state dict continues a run exactly. */
export async function checkContinuation(t: ExecutionContext, device: Device): Promise<void> {
  for (const one of await loadCases<Config>('optim', device)) {
    const parameters = [0, 1].map((i) => parameter(one.get(`parameter.${i}`).clone()))
    let optimizer = make(one.config, parameters)
    const twins = parameters.map((p) => parameter(p.clone().detach()))
    const reference = make(one.config, twins)
    for (let step = 0; step < one.config.steps; step++) {
      for (const [list, stepper] of [
        [parameters, optimizer],
        [twins, reference],
      ] as const) {
        list.forEach((p, i) => {
          p.grad = one.copy(`gradient.${step}.${i}`)
        })
        stepper.step()
      }
      const state = optimizer.stateDict()
      optimizer = make({ ...one.config, options: { ...one.config.options, lr: 7 } }, parameters)
      optimizer.loadStateDict(state)
    }
    parameters.forEach((p, i) => t.deepEqual(p.dataSync(), twins[i]!.dataSync(), one.name))
  }
}
