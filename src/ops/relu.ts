/** Rectified linear unit. */
import { applySingle } from '../autograd/operation.ts'
import type { Operation } from '../autograd/operation.ts'
import { native } from '../native.ts'
import { nativeOf, wrap } from '../tensor.ts'
import type { Tensor } from '../tensor.ts'

const operation: Operation<undefined> = {
  name: 'relu',
  forward(context, [x]) {
    context.saveOutput(0)
    return [native.relu(nativeOf(x as Tensor))]
  },
  backward({ savedTensors }, [gradient]) {
    return [reluBackward(gradient as Tensor, savedTensors[0] as Tensor)]
  },
}

/** gradient where output > 0, else 0: linear in the gradient; its derivative by the output is 0, as in PyTorch. */
const backwardOperation: Operation<undefined> = {
  name: 'reluBackward',
  forward(context, inputs) {
    const [gradient, output] = inputs as [Tensor, Tensor]
    context.save(output)
    return [native.reluBackward(nativeOf(gradient), nativeOf(output))]
  },
  backward({ needs, savedTensors }, [gradient]) {
    const output = savedTensors[0] as Tensor
    return [needs[0] ? reluBackward(gradient as Tensor, output) : null, needs[1] ? zerosLike(output) : null]
  },
}

function zerosLike({ shape, dtype, memoryFormat, device }: Tensor): Tensor {
  return wrap(native.tensorFull([...shape], 0, dtype, memoryFormat, device))
}

function reluBackward(gradient: Tensor, output: Tensor): Tensor {
  return applySingle(backwardOperation, [gradient, output], undefined)
}

/** max(input, 0) elementwise; NaN stays NaN. float32 or float64. */
export function relu(input: Tensor): Tensor {
  return applySingle(operation, [input], undefined)
}
