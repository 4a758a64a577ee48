/** From a dataset to batches. */
export { DataLoader, type DataLoaderOptions, type Dataset } from './data-loader.ts'
export { DistributedSampler, type DistributedSamplerOptions, type Sampler } from './distributed-sampler.ts'
