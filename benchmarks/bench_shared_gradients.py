"""What do the gradients of training processes on one CPU cost on their way: through gloo, and through common memory?

    python benchmarks/bench_shared_gradients.py [--processes 2] [--millions 3.5] [--output shared_gradients.json]

Each process trains a model of so many million parameters on a batch of one, so that hardly anything but the exchange is
left of a step. Both ways take turns; wall time of the slowest process, the ratio is the median over rounds.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from espnet_bestow.process_group import leave_group
from espnet_bestow.shared_gradients import SharedGradients

WIDTH = 512


class Layers(nn.Module):
    """Square layers, as many as it takes, and a loss of weight 1."""

    def __init__(self, millions: float):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(round(millions * 1e6 / WIDTH**2))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (1, WIDTH) -> loss, weight."""
        return self.layers(x).sum(), torch.ones(1)


def steps(model: nn.Module, layers: nn.Module, x: Tensor, count: int) -> float:
    """Milliseconds per step of layers, which are in a model, of the slowest process."""
    dist.barrier()
    began = time.perf_counter()
    for _ in range(count):
        for parameter in layers.parameters():
            parameter.grad = None
        model(x)[0].backward()
    spent = torch.tensor([1e3 * (time.perf_counter() - began) / count])
    dist.all_reduce(spent, dist.ReduceOp.MAX)
    return spent.item()


def process(rank: int, args: argparse.Namespace, store: str) -> None:
    """What each process does; the first one reports."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=args.processes)
    row = compare(rank, args)
    if rank == 0:
        print(json.dumps(row))
        if args.output:
            args.output.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
    leave_group()


def compare(rank: int, args: argparse.Namespace) -> dict[str, Any]:
    """Both ways in turns."""
    some, others = Layers(args.millions), Layers(args.millions)
    shared = SharedGradients.join(others)
    if shared is None:
        raise SystemExit("these processes have no common memory")
    ways = {"gloo": (DistributedDataParallel(some), some), "common memory": (shared, others)}
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(rank))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        steps(*way, x, args.steps)
    for _ in range(args.rounds):
        for name, way in ways.items():
            found[name].append(steps(*way, x, args.steps))
    same = all(a.grad.equal(b.grad) for a, b in zip(some.parameters(), others.parameters(), strict=True))
    ratio = statistics.median(a / b for a, b in zip(found["gloo"], found["common memory"], strict=True))
    row = {f"{name}, ms": round(statistics.median(each), 2) for name, each in found.items()}
    return row | {"processes": args.processes, "ratio": round(ratio, 2), "same bits": same}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--millions", type=float, default=3.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(process, (args, os.path.join(folder, "store")), nprocs=args.processes)


if __name__ == "__main__":
    main()
