/** Modules one after the other. */
import { argumentError } from '../errors.ts'
import type { Tensor } from '../tensor.ts'
import { membersOf, Module } from './module.ts'

/** Calls its modules in order, each with the output of the one before; they are named '0', '1', …. */
export class Sequential extends Module {
  constructor(...modules: Module[]) {
    super()
    modules.forEach((module, index) => this.registerModule(`${index}`, module))
  }

  override forward(input: Tensor): Tensor {
    const { modules } = membersOf(this)
    if (input === undefined) throw argumentError('Sequential: expected an input, got none')
    return modules.reduce((value, member) => member.value.call(value), input)
  }
}
