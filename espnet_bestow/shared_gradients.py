"""Gradients of training processes on one machine meet in memory instead of travelling through sockets.

On a CPU, processes exchange gradients by gloo, through the loopback network: the operating system copies every number
several times, on the cores that should compute. Here each process writes its gradients to memory that all of them see,
waits for a message of one number from the others, and adds up.

A loss is a mean over something, tokens for instance, of which the batches of processes have different numbers: the
weights of their gradients. These travel during the backward pass, so that a step waits for the others only once.
"""

import contextlib
import mmap
import os
import secrets
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

_MOST = 1 << 30
"""Bytes of memory; beyond them a step takes so long that the way of its gradients hardly counts."""


class SharedGradients:
    """How a :class:`DistributedDataParallel` averages gradients; all processes :meth:`join` at the same time.

    Args:
        memory: (2, processes, gradients) float32, seen by all processes. Steps take turns with its halves: a process
            that is late with reading one is waited for in the other, before the first is written again.
    """

    def __init__(self, memory: Tensor):
        self.memory = memory
        self.rank = dist.get_rank()
        self._turn = 0
        self._end = 0  # gradients of the present step that have a place
        self._share = torch.tensor(1.0 / dist.get_world_size())  # of this process in the mean
        self._weights: tuple[Tensor, dist.Work] | None = None  # of the present step, (processes,), on their way

    @classmethod
    def join(cls, model: DistributedDataParallel) -> "SharedGradients | None":
        """Takes over the gradients of a model; None, and gloo goes on, where there is no common memory for them."""
        gradients = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        shape = (2, dist.get_world_size(), gradients)
        memory = _common_memory(shape) if _suits(model) else None
        if memory is None:
            return None
        shared = cls(memory)
        model.register_comm_hook(shared, cls.average)
        return shared

    @contextlib.contextmanager
    def weighing(self, model: DistributedDataParallel) -> Iterator[None]:
        """Within this context the mean is weighted by what the model returns with its loss: (loss, ..., weight)."""
        hook = model.register_forward_hook(self._send_weight)
        equal = self._share
        try:
            yield
        finally:
            hook.remove()
            self._share, self._weights = equal, None

    def _send_weight(self, model: nn.Module, _: Any, output: tuple[Tensor, Any, Tensor]) -> None:
        weights = torch.zeros(self.memory.shape[1])
        weights[self.rank] = output[-1].detach()
        self._weights = weights, dist.all_reduce(weights, async_op=True)

    def average(self, bucket: dist.GradBucket) -> Future[Tensor]:
        """The hook: called for some gradients at a time, from bucket 0 on, in the same order in all processes."""
        if bucket.index() == 0:
            self._turn, self._end = 1 - self._turn, 0
            if self._weights is not None:
                weights, sent = self._weights
                sent.wait()
                self._share, self._weights = weights[self.rank] / weights.sum(), None
        gradients = bucket.buffer()
        begin, self._end = self._end, self._end + len(gradients)
        every = self.memory[self._turn, :, begin : self._end]  # (processes, n)
        torch.mul(gradients, self._share, out=every[self.rank])
        everyone_has_written = dist.all_reduce(torch.zeros(1), async_op=True)

        def add(_: Future[Tensor]) -> Tensor:
            torch.add(every[0], every[1], out=gradients)
            for further in every[2:]:
                gradients.add_(further)
            return gradients

        return everyone_has_written.get_future().then(add)


def _suits(model: nn.Module) -> bool:
    plain = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in model.parameters())
    return plain and dist.get_backend() == "gloo" and dist.get_world_size() > 1


def _common_memory(shape: tuple[int, ...]) -> Tensor | None:
    """Memory of this shape that all processes see, if they can: they may run on several machines."""
    size = 4 * torch.Size(shape).numel()
    offered, offer = None, [None]
    if dist.get_rank() == 0 and 0 < size <= _MOST and hasattr(os, "memfd_create"):
        offered, secret = os.memfd_create("gradients"), secrets.token_bytes(16)
        os.ftruncate(offered, size)
        os.pwrite(offered, secret, 0)
        offer = [(os.getpid(), offered, secret)]  # type: ignore[list-item]
    dist.broadcast_object_list(offer, src=0)
    memory = None if offer[0] is None else _open(*offer[0], size)
    everyone = torch.tensor([int(memory is not None)])
    dist.all_reduce(everyone, dist.ReduceOp.MIN)
    if offered is not None:
        os.close(offered)  # whoever has opened it keeps it
    return memory.view(shape) if memory is not None and everyone else None


def _open(process: int, file: int, secret: bytes, size: int) -> Tensor | None:
    """What another process offers; elsewhere a process of this number is not the one that was meant."""
    try:
        with open(f"/proc/{process}/fd/{file}", "r+b", buffering=0) as found:
            if found.read(len(secret)) != secret:
                return None
            return torch.frombuffer(mmap.mmap(found.fileno(), size), dtype=torch.float32)
    except (OSError, ValueError):
        return None
