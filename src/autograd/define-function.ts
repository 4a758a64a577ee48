/** Operations that users define. */
import { ArgumentError, AutogradError } from '../errors.ts'
import { runScope } from '../scope.ts'
import { describe, handleOf, nativeOf, Tensor } from '../tensor.ts'
import type { FunctionContext } from '../types.ts'
import { native } from '../native.ts'
import { withGradMode } from './grad-mode.ts'
import type { Gradients } from './node.ts'
import { applySingle } from './operation.ts'
import type { Operation, OperationContext } from './operation.ts'

/** A user's operation: `forward` computes without being recorded, `backward` gives one gradient or null per argument. */
export interface FunctionDefinition<A extends unknown[]> {
  forward(ctx: FunctionContext, ...args: A): Tensor
  backward(ctx: FunctionContext, gradOutput: Tensor): Array<Tensor | null>
}

/** The context that user code sees; it reads and writes the operation's. */
class UserContext implements FunctionContext {
  [key: string]: unknown
  readonly #operation: OperationContext
  #toSave: Tensor[] = []

  constructor(operation: OperationContext) {
    this.#operation = operation
  }

  saveForBackward(...tensors: Tensor[]): void {
    this.#toSave.push(...tensors)
  }

  /** @internal Saves what was asked for; the result is saved with the history that it is about to get. */
  saveAll(result: Tensor): void {
    for (const tensor of this.#toSave) {
      if (tensor === result) this.#operation.saveOutput(0)
      else this.#operation.save(tensor)
    }
    this.#toSave = []
  }

  get savedTensors(): Tensor[] {
    return this.#operation.savedTensors as Tensor[]
  }
}

/**
 * A differentiable operation from a pair of functions. The result takes the arguments of `forward`; arguments that are
 * tensors take part in differentiation. `forward` is not recorded; tensors made inside it are released, except the
 * result and what `ctx.saveForBackward` keeps. `backward` returns one gradient per argument of `forward`, null for those
 * that have none; it may be differentiated again if it is written with differentiable operations.
 *
 * @throws ArgumentError if `forward` does not return a tensor; AutogradError if `backward` returns another number of
 *   gradients; ShapeError, DTypeError if a gradient does not match its argument.
 */
export function defineFunction<A extends unknown[]>(definition: FunctionDefinition<A>): (...args: A) => Tensor {
  return (...args) => applySingle(toOperation(definition), args.map(asInput), { args, context: null })
}

interface Call<A> {
  readonly args: A
  context: UserContext | null
}

function asInput(argument: unknown): Tensor | null {
  return argument instanceof Tensor ? argument : null
}

function toOperation<A extends unknown[]>(definition: FunctionDefinition<A>): Operation<Call<A>> {
  const name = definition.forward.name || 'function'
  return {
    name,
    sharesStorage: true,
    forward(context, _inputs, call) {
      call.context = new UserContext(context)
      return [runForward(definition, call.context, call.args)]
    },
    backward(_context, [gradient], call) {
      const gradients = definition.backward(call.context as UserContext, gradient as Tensor)
      return checkCount(gradients, call.args.length, name)
    },
  }
}

/** A reference of our own on the result: the user's tensor stays theirs. */
function runForward<A extends unknown[]>(definition: FunctionDefinition<A>, context: UserContext, args: A) {
  return runScope(() => {
    const result = withGradMode(false, () => definition.forward(context, ...args))
    if (!(result instanceof Tensor)) {
      throw new ArgumentError('ERR_ARGUMENT', `forward: expected to return a Tensor, got ${describe(result)}`)
    }
    context.saveAll(result)
    handleOf(result).sharesStorage = true
    return native.tensorAlias(nativeOf(result))
  })
}

function checkCount(gradients: Gradients, expected: number, name: string): Gradients {
  if (Array.isArray(gradients) && gradients.length === expected) return gradients
  const got = Array.isArray(gradients) ? `${gradients.length}` : describe(gradients)
  const message = `backward of '${name}': expected ${expected} gradients, one per argument of forward, got ${got}`
  throw new AutogradError('ERR_NOT_DIFFERENTIABLE', message)
}
