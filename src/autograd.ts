/** Gradients: recording, the backward pass, hooks for gradient reduction, user-defined operations. */
export { defineFunction } from './autograd/define-function.ts'
export { grad, onBackwardError, queueBackwardCallback } from './autograd/engine.ts'
export type { BackwardOptions } from './autograd/engine.ts'
export { gradMode, noGrad, withGradMode } from './autograd/grad-mode.ts'
export { reachableLeaves } from './autograd/graph.ts'
export { gradientOf, registerGradReadyHook } from './autograd/leaf.ts'
export { applyFunction, applySingle, notDifferentiable } from './autograd/operation.ts'
export type { Inputs, Operation, OperationContext } from './autograd/operation.ts'
