"""What do exchange of gradients, clipping and AdamW cost training processes on one CPU: by gloo, in common memory?

    python benchmarks/bench_shared_training.py [--processes 2] [--millions 3.5] [--output shared_training.json]

Each process trains a model of so many million parameters on a batch of one, so that hardly anything else is left of a
step. By gloo, DistributedDataParallel sends gradients and each process learns from all of them. Both ways take turns;
wall time of the slowest process, the ratio is the median over rounds.
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
from espnet_bestow.shared_training import training_together

WIDTH = 144  # a matrix of the mini recipe's models
Way = tuple[nn.Module, torch.optim.Optimizer]


class Layers(nn.Module):
    """Square layers side by side, as many as it takes, and a loss of weight 1."""

    def __init__(self, millions: float):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(round(millions * 1e6 / WIDTH**2)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (1, WIDTH) -> loss, weight."""
        return torch.cat([layer(x) for layer in self.layers]).square().mean(), torch.ones(1)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, count: int) -> float:
    """Milliseconds per step of the slowest process."""
    dist.barrier()
    began = time.perf_counter()
    for _ in range(count):
        model(x)[0].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
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
    theirs, ours = (torch.optim.AdamW(each.parameters(), lr=1e-4, fused=True) for each in (some, others))
    with training_together(others, [ours]) as shared:
        if shared is None:
            raise SystemExit("these processes have no common memory")
        found = timed({"gloo": (DistributedDataParallel(some), theirs), "common memory": (shared, ours)}, rank, args)
    apart = max(
        float((a - b).detach().abs().max()) for a, b in zip(some.parameters(), others.parameters(), strict=True)
    )
    ratio = statistics.median(a / b for a, b in zip(found["gloo"], found["common memory"], strict=True))
    row = {f"{name}, ms": round(statistics.median(each), 2) for name, each in found.items()}
    return row | {"processes": args.processes, "ratio": round(ratio, 2), "weights apart": apart}


def timed(ways: dict[str, Way], rank: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds per step, of each round."""
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(rank))
    for way in ways.values():
        steps(*way, x, args.steps)
    rounds = [{name: steps(*way, x, args.steps) for name, way in ways.items()} for _ in range(args.rounds)]
    return {name: [each[name] for each in rounds] for name in ways}


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
