"""Gradients of training processes on one machine meet in memory instead of travelling through sockets.

On a CPU, processes exchange gradients by gloo, through the loopback network: the operating system copies every number
several times, on the cores that should compute, and DistributedDataParallel copies each once more on either side. Here
each process writes all its gradients to memory that everyone sees at the end of the backward pass, waits for a message
of one number from the others, and adds up.

A loss is a mean over something, tokens for instance, of which the batches of processes have different numbers: the
weights of their gradients. These lie behind the gradients, so that a step waits for the others only once.
"""

import mmap
import os
import secrets
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable

_MOST = 1 << 30
"""Bytes of memory; beyond them a step takes so long that the way of its gradients hardly counts."""


class SharedGradients(nn.Module):
    """A model whose gradients are means over processes, each of which trains a copy; all :meth:`join` at the same time.

    In the place of DistributedDataParallel, for a model that returns (loss, ..., weight). Whoever clips gradients sees
    one parameter that has them all.

    Args:
        model: N numbers of it learn.
        memory: (2, processes, N + 1) float32, seen by all processes. Steps take turns with its halves: a process that
            is late with reading one is waited for in the other, before the first is written again.
    """

    def __init__(self, model: nn.Module, memory: Tensor):
        super().__init__()
        self.model = model
        self._memory = memory
        self._turn = 0
        self._learning = [each for each in model.parameters() if each.requires_grad]
        self._mean = torch.empty(memory.shape[2] - 1)
        pieces = self._mean.split([each.numel() for each in self._learning])
        self._gradients = [piece.view_as(each) for piece, each in zip(pieces, self._learning, strict=True)]
        self._all = nn.Parameter(torch.zeros(1).expand(len(self._mean)))  # without memory, for its gradient

    @classmethod
    def join(cls, model: nn.Module) -> "SharedGradients | None":
        """None where there is no common memory for the gradients of a model."""
        size = sum(each.numel() for each in model.parameters() if each.requires_grad)
        memory = _common_memory((2, dist.get_world_size(), size + 1)) if _suits(model) else None
        return None if memory is None else cls(model, memory)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """One, with the gradients of all."""
        yield self._all

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """What the model returns; the end of the backward pass from its loss is :meth:`average`."""
        loss, *stats, weight = self.model(*args, **kwargs)
        if loss.requires_grad:
            at_its_end = Variable._execution_engine.queue_callback  # type: ignore[attr-defined]
            loss = loss.clone()  # a view would lose the hook when ESPnet's trainer divides it in place
            loss.register_hook(lambda _: at_its_end(lambda: self.average(weight)))
        return loss, *stats, weight

    @torch.no_grad()
    def average(self, weight: Tensor) -> None:
        """Puts the weighted mean of all processes in the place of the gradients; a parameter without has zeros.

        Args:
            weight: of this process's, one number.
        """
        self._turn = 1 - self._turn
        every, weights = self._memory[self._turn].split([len(self._mean), 1], 1)  # (processes, N), (processes, 1)
        own = [torch.zeros_like(each) if each.grad is None else each.grad for each in self._learning]
        torch.cat([each.reshape(-1) for each in own], out=every[dist.get_rank()])
        weights[dist.get_rank()] = weight.detach()
        dist.all_reduce(torch.zeros(1))  # everyone has written
        shares = (weights / weights.sum()).flatten().tolist()
        torch.mul(every[0], shares[0], out=self._mean)
        for gradients, share in zip(every[1:], shares[1:], strict=True):
            self._mean.add_(gradients, alpha=share)
        for parameter, gradient in zip(self._learning, self._gradients, strict=True):
            parameter.grad = gradient
        self._all.grad = self._mean


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
