/** Optimizers. */
export { AdamW } from './adamw.ts'
export type { AdamWOptions } from './adamw.ts'
export { Optimizer } from './optimizer.ts'
export { SGD } from './sgd.ts'
export type { SGDOptions } from './sgd.ts'
