"""Work that several processes of one gloo group do at the same time."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from espnet_bestow.process_group import leave_group


def _one(work: Callable[[int], Any], rank: int, world: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world)
    torch.save(work(rank), folder / f"out{rank}")
    leave_group()


def in_processes(work: Callable[[int], Any], world: int, folder: Path) -> list[Any]:
    """What ``work``, a function of a module, returns in each of ``world`` processes, by their ranks."""
    # Not forked: autograd does not work in the child of a process that has used it, as other tests have.
    spawn = multiprocessing.get_context("spawn")
    ranks = [spawn.Process(target=_one, args=(work, rank, world, folder)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)  # importing torch takes a busy machine a minute
        assert process.exitcode == 0
    return [torch.load(folder / f"out{rank}") for rank in range(world)]


def gloo_threads() -> int:
    """Threads of this process that serve a group."""
    names = [task.joinpath("comm").read_text() for task in Path("/proc/self/task").iterdir()]
    return sum("gloo" in name for name in names)
