/**
 * The network of the demo: two convolutions and two linear layers for 8×8 images, with batch norm after each but the
 * last. The one after the linear layer sees a single value per channel and sample, so it is where small batches hurt.
 */
import { BatchNorm1d, BatchNorm2d, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential } from 'syncbn'

/** (N, 1, 8, 8) images to (N, 10) logits. Seed with `manualSeed` before: the weights are drawn here. */
export function digitsNet(): Sequential {
  return new Sequential(
    new Conv2d(1, 16, 3, { padding: 1, bias: false }),
    new BatchNorm2d(16),
    new ReLU(),
    new Conv2d(16, 32, 3, { padding: 1, bias: false }),
    new BatchNorm2d(32),
    new ReLU(),
    new MaxPool2d(2), // (N, 32, 4, 4)
    new Flatten(),
    new Linear(512, 64, { bias: false }),
    new BatchNorm1d(64),
    new ReLU(),
    new Linear(64, 10),
  )
}
