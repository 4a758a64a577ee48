"""PyTorch's batch norm on a GPU as a bench peer: JSON lines in and out, one for one.

The caller keeps this process open and alternates its requests with its own measurements,
so that both meet the same clocks. Requests::

    {"op": "versions"}
    {"op": "copy", "bytes": 268435456, "iterations": 20}
    {"op": "batchNorm", "shape": [32, 64, 112, 112], "memoryFormat": "contiguous",
     "dtype": "float32", "ranks": 8, "iterations": 20}
    {"op": "layer", "shape": ..., "memoryFormat": ..., "dtype": ..., "iterations": 20}
    {"op": "verify", "shape": ..., "memoryFormat": ..., "dtype": ..., "ranks": 8,
     "samples": 1000}

What ``batchNorm`` times is recorded into a CUDA graph, several times over, and replayed
between events: the time of the device, without Python's. The parts are those of
``torch/nn/modules/_functions.py``: the same kernels in the same order, with the exchange
replaced by work on the device (see ``Problem``). ``layer`` is what users call, launched
from Python. Exit status 3: torch cannot be imported or sees no GPU.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import lru_cache

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(f"batch_norm_torch_cuda.py needs torch: {error}", file=sys.stderr)
    sys.exit(3)

REPEATS = 10  # of the work in one graph
WARMUP = 3
EPS, MOMENTUM = 1e-5, 0.1
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channelsLast": torch.channels_last,
    "channelsLast3d": torch.channels_last_3d,
}
# Largest difference that is due to rounding, relative to the values' size.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}


def pattern(shape: tuple, factor: int, offset: int) -> torch.Tensor:
    """Numbers in [-0.5, 0.5) that the caller can make too: 16 bits, exact in float32."""
    index = torch.arange(torch.Size(shape).numel(), device="cuda")
    values = ((index * factor + offset) % 65536).to(torch.float32) / 65536 - 0.5
    return values.reshape(shape)


class Problem:
    """One rank's operands, and the steps of SyncBatchNorm on them.

    In place of the all_gather this rank's row is copied to each other rank's place; in
    place of the all_reduce the sums are multiplied by the number of ranks: as if every
    rank had the same input, so that the result is that of one rank.
    """

    def __init__(self, shape: tuple, memory_format: str, dtype: str, ranks: int):
        kind, layout = DTYPES[dtype], FORMATS[memory_format]

        def draw(factor: int, offset: int) -> torch.Tensor:
            values = pattern(shape, factor, offset).to(kind)
            return values.contiguous(memory_format=layout)

        self.x, self.dy = draw(40503, 0), draw(30011, 12345)
        self.channels, self.ranks = shape[1], ranks
        self.count = self.x.numel() // self.channels
        each = torch.arange(self.channels, device="cuda")
        self.weight = 0.5 + (each % 7).to(torch.float32) / 8
        self.bias = (each % 5).to(torch.float32) / 4 - 0.5
        self.running_mean = torch.zeros(self.channels, device="cuda")
        self.running_var = torch.ones(self.channels, device="cuda")
        self.gathered = torch.empty(ranks, 2 * self.channels + 1, device="cuda")
        # Results that later parts read.
        self.mean = self.invstd = self.counts = self.sums = None
        self.sync_forward()
        self.sync_backward()

    def stats(self) -> tuple:
        return torch.batch_norm_stats(self.x, EPS)

    def gather(self, mean: torch.Tensor, invstd: torch.Tensor) -> torch.Tensor:
        count = torch.full((1,), self.count, dtype=mean.dtype, device=mean.device)
        torch.cat([mean, invstd, count], out=self.gathered[0])
        for rank in range(1, self.ranks):
            self.gathered[rank].copy_(self.gathered[0])
        return self.gathered

    def merge_and_normalize(self) -> torch.Tensor:
        means, invstds, counts = torch.split(self.gathered, self.channels, dim=1)
        self.mean, self.invstd = torch.batch_norm_gather_stats_with_counts(
            self.x,
            means,
            invstds,
            self.running_mean,
            self.running_var,
            MOMENTUM,
            EPS,
            counts.reshape(-1),
        )
        self.counts = counts.to(torch.int32)
        return torch.batch_norm_elemt(
            self.x, self.weight, self.bias, self.mean, self.invstd, EPS
        )

    def sync_forward(self) -> torch.Tensor:
        self.gather(*self.stats())
        return self.merge_and_normalize()

    def backward_reduce(self) -> tuple:
        return torch.batch_norm_backward_reduce(
            self.dy, self.x, self.mean, self.invstd, self.weight, True, True, True
        )

    def reduce_over_ranks(self, sum_dy: torch.Tensor, sum_dy_xmu: torch.Tensor) -> None:
        self.sums = torch.cat([sum_dy, sum_dy_xmu], dim=0).mul_(self.ranks)

    def backward_apply(self) -> torch.Tensor:
        sum_dy, sum_dy_xmu = torch.split(self.sums, self.channels)
        return torch.batch_norm_backward_elemt(
            self.dy,
            self.x,
            self.mean,
            self.invstd,
            self.weight,
            sum_dy,
            sum_dy_xmu,
            self.counts,
        )

    def sync_backward(self) -> tuple:
        sum_dy, sum_dy_xmu, grad_weight, grad_bias = self.backward_reduce()
        self.reduce_over_ranks(sum_dy, sum_dy_xmu)
        return self.backward_apply(), grad_weight, grad_bias

    def cudnn_forward(self) -> tuple:
        return torch.ops.aten.cudnn_batch_norm(
            self.x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            True,
            MOMENTUM,
            EPS,
        )

    def cudnn_backward(self, mean, invstd, reserve) -> tuple:
        return torch.ops.aten.cudnn_batch_norm_backward(
            self.x,
            self.dy,
            self.weight,
            self.running_mean,
            self.running_var,
            mean,
            invstd,
            EPS,
            reserve,
        )

    def native_forward(self) -> tuple:
        return torch.ops.aten.native_batch_norm(
            self.x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            True,
            MOMENTUM,
            EPS,
        )

    def native_backward(self, mean, invstd) -> tuple:
        return torch.ops.aten.native_batch_norm_backward(
            self.dy,
            self.x,
            self.weight,
            self.running_mean,
            self.running_var,
            mean,
            invstd,
            True,
            EPS,
            [True, True, True],
        )

    def functional(self) -> tuple:
        """What users call: (y, dx, grad_weight, grad_bias)."""
        leaves = [
            tensor.detach().requires_grad_()
            for tensor in (self.x, self.weight, self.bias)
        ]
        x, weight, bias = leaves
        y = F.batch_norm(
            x, self.running_mean, self.running_var, weight, bias, True, MOMENTUM, EPS
        )
        return (y.detach(), *torch.autograd.grad(y, leaves, self.dy))


# One problem at a time: a second large one would push the first out of memory.
make_problem = lru_cache(maxsize=1)(Problem)


def timed(work: Callable, iterations: int) -> float:
    """Median milliseconds of ``work`` on the device, recorded and replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(REPEATS):
            work()
    for _ in range(WARMUP):
        graph.replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(iterations + 1)]
    marks[0].record()
    for mark in marks[1:]:
        graph.replay()
        mark.record()
    torch.cuda.synchronize()
    pairs = zip(marks, marks[1:])
    return statistics.median(a.elapsed_time(b) for a, b in pairs) / REPEATS


def one_rank(problem: Problem, iterations: int) -> dict:
    """Batch norm without an exchange, by cuDNN and by PyTorch's own kernels.

    A way that PyTorch or cuDNN does not have for this input is left out.
    """

    def cudnn() -> tuple[float, float]:
        _, mean, invstd, reserve = problem.cudnn_forward()
        forward = timed(problem.cudnn_forward, iterations)
        backward = timed(
            lambda: problem.cudnn_backward(mean, invstd, reserve), iterations
        )
        return forward, backward

    def native() -> tuple[float, float]:
        _, mean, invstd = problem.native_forward()
        forward = timed(problem.native_forward, iterations)
        backward = timed(lambda: problem.native_backward(mean, invstd), iterations)
        return forward, backward

    ways = {}
    for name, way in (("cudnn", cudnn), ("native", native)):
        try:
            forward, backward = way()
            ways[name] = {"forwardMs": forward, "backwardMs": backward}
        except RuntimeError as error:
            ways[name] = {"unavailable": str(error).splitlines()[0]}
    return ways


def measure(spec: dict) -> dict:
    problem, iterations = problem_of(spec), spec["iterations"]
    parts = {
        "stats": problem.stats,
        "mergeAndNormalize": problem.merge_and_normalize,
        "backwardReduce": problem.backward_reduce,
        "backwardApply": problem.backward_apply,
        "syncForward": problem.sync_forward,
        "syncBackward": problem.sync_backward,
    }
    with torch.no_grad():
        times = {name: timed(part, iterations) for name, part in parts.items()}
        return {**times, **one_rank(problem, iterations)}


def layer(spec: dict) -> dict:
    """Milliseconds of a call and its backward, launched from Python back to back."""
    problem, iterations = problem_of(spec), spec["iterations"]
    for _ in range(WARMUP):
        problem.functional()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(iterations):
        problem.functional()
    torch.cuda.synchronize()
    return {"ms": (time.perf_counter() - start) * 1e3 / iterations}


def copy(spec: dict) -> dict:
    source = torch.zeros(spec["bytes"], dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return {"ms": timed(lambda: target.copy_(source), spec["iterations"])}


def samples_of(tensor: torch.Tensor, samples: int) -> list[float]:
    """So many elements, evenly spaced in the order of the indices."""
    size = tensor.numel()
    at = torch.arange(min(samples, size), device="cuda") * size // min(samples, size)
    return tensor.contiguous().reshape(-1)[at].to(torch.float64).tolist()


def verify(spec: dict) -> dict:
    """Samples of y, dx and the parameter gradients, after the ways agree."""
    problem = problem_of(spec)
    with torch.no_grad():
        synced = (problem.sync_forward(), *problem.sync_backward())
    plain = problem.functional()
    # Sums are float32 whatever the input's type, and as large as their terms are many.
    results = {
        "y": (1, spec["dtype"]),
        "dx": (1, spec["dtype"]),
        "gradWeight": (problem.count, "float32"),
        "gradBias": (problem.count, "float32"),
    }
    answer = {}
    for (name, (size, kind)), got, expected in zip(
        results.items(), synced, plain, strict=True
    ):
        got, expected = got.to(torch.float32), expected.to(torch.float32)
        largest = max(expected.abs().max().item(), 1e-3 * size)
        difference = (got - expected).abs().max().item()
        if not difference <= TOLERANCE[kind] * largest:
            raise ValueError(f"{name}: SyncBatchNorm's kernels differ by {difference}")
        answer[name] = samples_of(got, spec["samples"])
    return answer


def problem_of(spec: dict) -> Problem:
    return make_problem(
        tuple(spec["shape"]), spec["memoryFormat"], spec["dtype"], spec.get("ranks", 1)
    )


def versions(_: dict) -> dict:
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "device": torch.cuda.get_device_name(),
    }


OPERATIONS = {
    "versions": versions,
    "copy": copy,
    "batchNorm": measure,
    "layer": layer,
    "verify": verify,
}


def answer_line(line: str) -> dict:
    try:
        request = json.loads(line)
        operation = OPERATIONS.get(request.get("op"))
        if operation is None:
            raise ValueError(f"op: expected one of {sorted(OPERATIONS)}")
        return operation(request)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    if not torch.cuda.is_available():
        print("batch_norm_torch_cuda.py: torch sees no GPU", file=sys.stderr)
        sys.exit(3)
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(answer_line(line)), flush=True)


if __name__ == "__main__":
    main()
