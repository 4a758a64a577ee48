"""PyTorch's CPU batch norm as a bench peer: JSON lines in, one JSON line out for each.

The caller keeps this process open and alternates its requests with its own measurements,
so that both meet the same machine state. Requests::

    {"op": "versions"}
    {"op": "batchNorm", "shape": [8, 64, 56, 56], "memoryFormat": "contiguous",
     "dtype": "float32", "phase": "forward", "iterations": 10, "threads": 2,
     "fresh": true}

- ``memoryFormat``: contiguous, channelsLast (4-D) or channelsLast3d (5-D).
- ``dtype``: float32, float64, float16 or bfloat16; weight, bias and running buffers of
  the half types are float32.
- ``phase``: forward or forwardBackward.
- ``fresh``: true is what users call, a new output every time; false writes the forward
  into a reused buffer.

An answer has ``medianMs`` and ``minimumMs`` per iteration over ``iterations`` runs after
at least 3 warm-up runs, and ``measures``, which says what was timed; forwardBackward also
has the median of each part. A bad request is answered by ``{"error": ...}``. The process
ends at end of input. Exit status 3: torch cannot be imported.
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import lru_cache

try:
    import torch
    import torch.nn.functional as F
except ImportError as error:
    print(f"batch_norm_torch.py needs torch: {error}", file=sys.stderr)
    sys.exit(3)

WARMUP = 3
EPS, MOMENTUM = 1e-5, 0.1
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channelsLast": torch.channels_last,
    "channelsLast3d": torch.channels_last_3d,
}


class Problem:
    """The tensors of one shape, dtype and memory format."""

    def __init__(self, shape: tuple, memory_format: str, dtype: str):
        kind = DTYPES[dtype]
        parameter_kind = torch.float64 if kind == torch.float64 else torch.float32
        layout = FORMATS[memory_format]
        generator = torch.Generator().manual_seed(0)

        def draw() -> torch.Tensor:
            values = torch.randn(shape, generator=generator, dtype=parameter_kind)
            return values.to(kind).contiguous(memory_format=layout)

        channels = shape[1]
        self.x, self.grad_output = draw(), draw()
        self.weight = torch.rand(channels, generator=generator, dtype=parameter_kind)
        self.bias = torch.rand(channels, generator=generator, dtype=parameter_kind)
        self.running_mean = torch.zeros(channels, dtype=parameter_kind)
        self.running_var = torch.ones(channels, dtype=parameter_kind)
        self.output = torch.empty_like(self.x)
        self.save_mean = torch.empty(channels, dtype=parameter_kind)
        self.save_invstd = torch.empty(channels, dtype=parameter_kind)

    def forward_fresh(self) -> torch.Tensor:
        return F.batch_norm(
            self.x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=True,
            momentum=MOMENTUM,
            eps=EPS,
        )

    def forward_reused(self) -> torch.Tensor:
        torch.ops.aten.native_batch_norm.out(
            self.x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            True,
            MOMENTUM,
            EPS,
            out=self.output,
            save_mean=self.save_mean,
            save_invstd=self.save_invstd,
        )
        return self.output

    def backward_native(self) -> None:
        torch.ops.aten.native_batch_norm_backward(
            self.grad_output,
            self.x,
            self.weight,
            self.running_mean,
            self.running_var,
            self.save_mean,
            self.save_invstd,
            True,
            EPS,
            [True, True, True],
        )

    def backward_autograd(self, output: torch.Tensor) -> None:
        leaves = (self.x, self.weight, self.bias)
        torch.autograd.grad(output, leaves, self.grad_output)

    def require_gradients(self, value: bool) -> None:
        for leaf in (self.x, self.weight, self.bias):
            leaf.requires_grad_(value)


# One problem at a time: a second large one would push the first out of memory.
make_problem = lru_cache(maxsize=1)(Problem)


def forward_once(problem: Problem, fresh: bool) -> list[float]:
    call = problem.forward_fresh if fresh else problem.forward_reused
    with torch.no_grad():
        start = time.perf_counter()
        output = call()
        elapsed = time.perf_counter() - start
    del output
    return [elapsed]


def forward_backward_fresh(problem: Problem) -> list[float]:
    start = time.perf_counter()
    output = problem.forward_fresh()
    middle = time.perf_counter()
    problem.backward_autograd(output)
    return [middle - start, time.perf_counter() - middle]


def forward_backward_reused(problem: Problem) -> list[float]:
    with torch.no_grad():
        start = time.perf_counter()
        problem.forward_reused()
        middle = time.perf_counter()
        problem.backward_native()
        return [middle - start, time.perf_counter() - middle]


def choose(problem: Problem, phase: str, fresh: bool) -> tuple[Callable, str]:
    """What to run, returning the seconds of its parts, and how to describe it."""
    if phase == "forward":
        text = (
            "torch.nn.functional.batch_norm(training=True) under no_grad, new output"
            if fresh
            else "torch.ops.aten.native_batch_norm.out under no_grad, reused output"
        )
        return lambda: forward_once(problem, fresh), text
    if fresh:
        text = (
            "torch.nn.functional.batch_norm(training=True) recording the graph, then "
            "torch.autograd.grad for input, weight and bias; new tensors every time"
        )
        return lambda: forward_backward_fresh(problem), text
    text = (
        "torch.ops.aten.native_batch_norm.out into a reused output, then "
        "torch.ops.aten.native_batch_norm_backward, which has no CPU kernel that writes "
        "into given tensors and allocates the gradients"
    )
    return lambda: forward_backward_reused(problem), text


def validated(request: dict) -> dict:
    """The request's fields, checked; ValueError says what is wrong."""
    shape = request.get("shape")
    sizes = isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape)
    if not (sizes and len(shape) >= 2):
        raise ValueError(f"shape: expected 2 or more positive integers, got {shape}")
    memory_format = request.get("memoryFormat", "contiguous")
    ranks = {"contiguous": len(shape), "channelsLast": 4, "channelsLast3d": 5}
    if ranks.get(memory_format) != len(shape):
        raise ValueError(f"memoryFormat {memory_format!r} does not suit {shape}")
    dtype, phase = request.get("dtype", "float32"), request.get("phase")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected one of {sorted(DTYPES)}, got {dtype!r}")
    if phase not in ("forward", "forwardBackward"):
        raise ValueError(f"phase: expected forward or forwardBackward, got {phase!r}")
    iterations, threads = request.get("iterations"), request.get("threads")
    for name, value in (("iterations", iterations), ("threads", threads)):
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    fresh = request.get("fresh", True)
    if type(fresh) is not bool:
        raise ValueError(f"fresh: expected a boolean, got {fresh!r}")
    return {
        "shape": tuple(shape),
        "memoryFormat": memory_format,
        "dtype": dtype,
        "phase": phase,
        "iterations": iterations,
        "threads": threads,
        "fresh": fresh,
    }


def measure(request: dict) -> dict:
    spec = validated(request)
    torch.set_num_threads(spec["threads"])
    problem = make_problem(spec["shape"], spec["memoryFormat"], spec["dtype"])
    graph = spec["phase"] == "forwardBackward" and spec["fresh"]
    problem.require_gradients(graph)
    run, measures = choose(problem, spec["phase"], spec["fresh"])
    for _ in range(WARMUP):
        run()
    parts = [run() for _ in range(spec["iterations"])]
    totals = [sum(part) * 1e3 for part in parts]
    answer = {
        "op": "batchNorm",
        "medianMs": statistics.median(totals),
        "minimumMs": min(totals),
        "iterations": spec["iterations"],
        "warmup": WARMUP,
        "threads": torch.get_num_threads(),
        "measures": measures,
    }
    if spec["phase"] == "forwardBackward":
        answer["medianForwardMs"] = statistics.median(p[0] for p in parts) * 1e3
        answer["medianBackwardMs"] = statistics.median(p[1] for p in parts) * 1e3
    return answer


def versions() -> dict:
    return {
        "op": "versions",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpuCapability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),
    }


def answer_line(line: str) -> dict:
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise TypeError(f"expected a JSON object, got {line.strip()}")
        if request.get("op") == "versions":
            return versions()
        if request.get("op") == "batchNorm":
            return measure(request)
        raise ValueError(
            f"op: expected batchNorm or versions, got {request.get('op')!r}"
        )
    except (TypeError, ValueError, RuntimeError) as error:
        return {"error": str(error)}


def main() -> None:
    for line in sys.stdin:
        if line.strip():
            print(json.dumps(answer_line(line)), flush=True)


if __name__ == "__main__":
    main()
