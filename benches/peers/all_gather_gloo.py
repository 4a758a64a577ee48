"""Times gloo's all_gather of a small payload, for comparison with our TCP mesh.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python all_gather_gloo.py BYTES [--iterations N] [--timeout SECONDS]

Start one process per rank. Every rank contributes BYTES bytes (float32, so a multiple of
4); a call ends when the rank holds all payloads, and the gathered values are checked
before anything is timed. Rank 0 prints one JSON line with ``p50Us`` and ``p99Us`` over
its own calls, in microseconds. Exit status 3: torch cannot be imported.
"""

import argparse
import json
import os
import sys
import time
from datetime import timedelta

try:
    import torch
    import torch.distributed as dist
except ImportError as error:
    print(f"all_gather_gloo.py needs torch: {error}", file=sys.stderr)
    sys.exit(3)

WARMUP = 50
ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bytes", type=int, help="payload of a rank, a multiple of 4")
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds per wait")
    arguments = parser.parse_args()
    if arguments.bytes < 4 or arguments.bytes % 4:
        parser.error(f"bytes: expected a positive multiple of 4, got {arguments.bytes}")
    if arguments.iterations < 1:
        parser.error(f"iterations: expected at least 1, got {arguments.iterations}")
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        parser.error(f"environment: {', '.join(missing)} not set")
    return arguments


def check(outputs: list[torch.Tensor]) -> None:
    for rank, output in enumerate(outputs):
        if not bool((output == rank + 1).all()):
            raise RuntimeError(f"all_gather returned wrong values for rank {rank}")


def percentile(ordered: list[float], fraction: float) -> float:
    """The value at ``fraction`` of a sorted list, by nearest rank."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def time_calls(arguments: argparse.Namespace) -> list[float]:
    """Microseconds of each call on this rank, sorted."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    payload = torch.full((arguments.bytes // 4,), float(rank + 1))
    outputs = [torch.empty_like(payload) for _ in range(world_size)]
    for _ in range(WARMUP):
        dist.all_gather(outputs, payload)
    check(outputs)
    dist.barrier()
    times = []
    for _ in range(arguments.iterations):
        start = time.perf_counter_ns()
        dist.all_gather(outputs, payload)
        times.append((time.perf_counter_ns() - start) / 1e3)
    return sorted(times)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=arguments.timeout))
    try:
        times = time_calls(arguments)
        dist.barrier()
        if dist.get_rank() == 0:
            answer = {
                "op": "allGather",
                "backend": "gloo",
                "torch": torch.__version__,
                "bytes": arguments.bytes,
                "worldSize": dist.get_world_size(),
                "iterations": arguments.iterations,
                "p50Us": percentile(times, 0.5),
                "p99Us": percentile(times, 0.99),
            }
            print(json.dumps(answer), flush=True)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
