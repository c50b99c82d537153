"""Training processes on one machine share weights, gradients and the work of the optimizer.

On a CPU, processes exchange gradients by gloo, through the loopback network: the operating system copies every number
several times, on the cores that should compute, and DistributedDataParallel copies each once more on either side. Then
each process goes through all weights and all that the optimizer remembers of them, the same in each, at the pace of the
memory that they share.

Here weights lie in memory that everyone sees. At the end of the backward pass a process writes its gradients there,
waits for the others, and averages and learns an equal part of them: so many numbers, or, where an optimizer looks at
matrices (:mod:`.muon`), so many matrices.

A loss is a mean over something, tokens for instance, of which the batches of processes have different numbers: the
weights of their gradients. These lie behind the gradients, so that nobody waits for them.
"""

import contextlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Variable
from torch.optim import Optimizer

from espnet_bestow.common_memory import common_memory
from espnet_bestow.muon import Muon

_ELEMENT_BY_ELEMENT = {
    *(torch.optim.Adadelta, torch.optim.Adagrad, torch.optim.Adam, torch.optim.Adamax, torch.optim.AdamW),
    *(torch.optim.NAdam, torch.optim.RAdam, torch.optim.RMSprop, torch.optim.Rprop, torch.optim.SGD),
}
"""To these a number's neighbours do not matter."""

_LINE = 16
"""Numbers at whose multiples a parameter begins: a line of the cache."""


@contextlib.contextmanager
def training_together(
    model: nn.Module, optimizers: Sequence[Optimizer], norm_type: float = 2.0
) -> Iterator["SharedModel | None"]:
    """Within this context processes of a group, each with a copy of the model, train one.

    Steps are made by the optimizers as ever; each learns a part of the weights. All processes enter at the same time,
    and leave after equally many steps. Then model and optimizers are whole in each again.

    Args:
        model: returns (loss, ..., weight).
        optimizers: of all that learns.
        norm_type: of the norm that gradients are clipped by.

    Yields:
        What takes the place of DistributedDataParallel, or None where training cannot be shared.
    """
    parts = _parts(optimizers, dist.get_world_size())
    memory = None
    if _suits(parts, optimizers):
        memory = common_memory((dist.get_world_size() + 1, parts[-1].stop + _LINE))
    if memory is None:
        yield None
        return
    for part in parts:
        part.enter(memory)
    hooks = [each.register_step_post_hook(lambda *_: _wait()) for each in optimizers]  # others' weights are new, too
    yield SharedModel(model, parts, memory, norm_type)
    for hook in hooks:
        hook.remove()
    for part in parts:
        part.leave(memory)


class SharedModel(nn.Module):
    """A model whose gradients are means over processes.

    Whoever clips gradients sees those that this process learns from, and one parameter with the norms of the others'.

    Args:
        model: the parts are of it.
        parts: of all that learns.
        memory: (processes + 1, N + 16), seen by all: gradients and their weights of each process, and what they learn.
        norm_type: of those norms.
    """

    def __init__(self, model: nn.Module, parts: Sequence["Part"], memory: Tensor, norm_type: float):
        super().__init__()
        self.model = model
        self._parts = parts
        size = memory.shape[1] - _LINE
        self._every, self._weights = memory[:-1, :size], memory[:-1, size]  # (processes, N), (processes,)
        self._norm_type = norm_type
        self._others = nn.Parameter(torch.zeros(len(memory) - 2))

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What this process learns, and the others' norms."""
        yield from (each for part in self._parts for each in part.own)
        yield self._others

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
        """Adds the weighted mean of all processes' gradients to those of the own parts; without any they are zeros.

        Args:
            weight: of this process's, one number.
        """
        rank = dist.get_rank()
        torch.cat([each for part in self._parts for each in part.take_gradients()], out=self._every[rank])
        self._weights[rank] = weight.detach()
        _wait()  # everyone has written
        shares = (self._weights / self._weights.sum()).tolist()
        for part in self._parts:
            part.add_mean(self._every, shares)
        norms = torch.zeros(len(self._every))
        norms[rank] = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(part.mean, self._norm_type) for part in self._parts]), self._norm_type
        )
        dist.all_reduce(norms)  # and everyone has read
        self._others.grad = torch.cat([norms[:rank], norms[rank + 1 :]])


class Part:
    """What an optimizer learns with the same options, of which each process learns an equal share.

    Args:
        optimizer: of which this is one group.
        group: its options.
        start: where it begins in rows of common memory.
        world: number of processes.
    """

    own: list[nn.Parameter]
    """This process's share of the weights, for which the optimizer takes all within the context."""

    mean: Tensor
    """Of the gradients of its share, in a row."""

    def __init__(self, optimizer: Optimizer, group: dict[str, Any], start: int, world: int):
        self.optimizer, self.group = optimizer, group
        self.members = list(group["params"])
        self.learning = [each for each in self.members if each.requires_grad]
        self.places: list[slice] = []  # of each that learns
        end = start
        for each in self.learning:
            self.places.append(slice(end, end + each.numel()))
            end += _up(each.numel(), _LINE)
        self.stop = start + _up(end - start, _LINE * world)
        share = (self.stop - start) // world
        edges = [start + share * rank for rank in range(world + 1)]
        if group.get("matrices"):  # whoever has the middle of one has all of it
            begins = [place.start for place in self.places] + [self.stop]
            middles = [(place.start + place.stop) // 2 for place in self.places]
            edges[1:-1] = [begins[bisect_left(middles, edge)] for edge in edges[1:-1]]
        begin, end = edges[dist.get_rank() :][:2]
        self.share = slice(begin, end)
        self._pieces = [(self.share, torch.Size([end - begin]))]  # of its share: what is learned as one, and its shape
        if group.get("matrices"):
            pairs = zip(self.places, self.learning, strict=True)
            self._pieces = [(place, each.shape) for place, each in pairs if begin <= place.start < end]
        ends = [*(place.start for place in self.places[1:]), self.stop]
        self._gaps = [torch.zeros(after - place.stop) for place, after in zip(self.places, ends, strict=True)]
        self.mean = torch.zeros(end - begin)
        self._gradients = [
            self.mean[place.start - begin : place.stop - begin].view(shape) for place, shape in self._pieces
        ]

    def enter(self, memory: Tensor) -> None:
        """Weights move to the last row, those of the first process; the optimizer learns a share of them."""
        weights, states = memory[-1], [self.optimizer.state.pop(each, None) for each in self.learning]
        self._before = [each.data for each in self.learning]
        for each, place in zip(self.learning, self.places, strict=True):
            shared = weights[place].view_as(each)
            if dist.get_rank() == 0:
                shared.copy_(each.data)
            each.data = shared
        self.own = [nn.Parameter(weights[place].view(shape)) for place, shape in self._pieces]
        if any(states):
            self.optimizer.state.update(zip(self.own, self._joined(states), strict=True))
        self.group["params"] = self.own
        _wait()

    def leave(self, memory: Tensor) -> None:
        """Undoes :meth:`enter`, with what has been learned."""
        _wait()
        for each, before in zip(self.learning, self._before, strict=True):
            each.data = before.copy_(each.data)
        own = [self.optimizer.state.pop(each, {}) for each in self.own]
        kinds: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
        dist.all_gather_object(kinds, self._kinds(own))  # a process may have no matrix
        states: list[dict[str, Any]] = [{} for _ in self.learning]
        for name, kind in {name: kind for each in kinds for name, kind in each.items()}.items():
            if kind is not None:
                for state in states:
                    state[name] = deepcopy(kind[0])
                continue
            for state, (place, _) in zip(own, self._pieces, strict=True):
                memory[0][place] = state[name].flatten()
            _wait()
            for state, each, place in zip(states, self.learning, self.places, strict=True):
                state[name] = memory[0][place].view_as(each).clone()
            _wait()
        self.optimizer.state.update((each, state) for each, state in zip(self.learning, states, strict=True) if state)
        self.group["params"] = self.members

    def _kinds(self, states: Sequence[dict[str, Any]]) -> dict[str, list[Any] | None]:
        """By the names of the own states: what they are, in a list, or None for one number for each of a parameter."""
        kinds: dict[str, list[Any] | None] = {}
        for state, own in zip(states, self.own, strict=True):
            kinds.update((name, None if _is_of(value, own) else [value]) for name, value in state.items())
        return kinds

    def _joined(self, states: Sequence[dict[str, Any] | None]) -> list[dict[str, Any]]:
        """The own states. A parameter that has none yet has zeros, and the others' number of steps."""
        has_one = [(state, each) for state, each in zip(states, self.learning, strict=True) if state]
        state, example = max(has_one, key=lambda pair: pair[1].numel())
        joined: list[dict[str, Any]] = [{} for _ in self.own]
        for name, value in state.items():
            every = torch.zeros(self.stop)
            if _is_of(value, example):
                for other, place in zip(states, self.places, strict=True):
                    if other:
                        every[place] = other[name].flatten()
            for own, (place, shape) in zip(joined, self._pieces, strict=True):
                own[name] = every[place].view(shape).clone() if _is_of(value, example) else deepcopy(value)
        return joined

    def take_gradients(self) -> Iterator[Tensor]:
        """This process's gradients, in a row; the parameters have none afterwards."""
        for each, gap in zip(self.learning, self._gaps, strict=True):
            yield each.new_zeros(each.numel()) if each.grad is None else each.grad.reshape(-1)
            yield gap
            each.grad = None

    def add_mean(self, every: Tensor, shares: Sequence[float]) -> None:
        """Adds to the own gradients the mean of all processes', every (processes, N), of these shares."""
        rows = [gradients[self.share] for gradients in every]
        if any(own.grad is None for own in self.own):
            torch.mul(rows[0], shares[0], out=self.mean)
        else:
            self.mean.add_(rows[0], alpha=shares[0])
        for row, share in zip(rows[1:], shares[1:], strict=True):
            self.mean.add_(row, alpha=share)
        for own, gradient in zip(self.own, self._gradients, strict=True):
            own.grad = gradient


def _parts(optimizers: Sequence[Optimizer], world: int) -> list[Part]:
    parts: list[Part] = []
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(each.requires_grad for each in group["params"]):
                parts.append(Part(optimizer, group, parts[-1].stop if parts else 0, world))
    return parts


def _suits(parts: Sequence[Part], optimizers: Sequence[Optimizer]) -> bool:
    plain = all(each.dtype == torch.float32 and each.device.type == "cpu" for part in parts for each in part.learning)
    simple = all(type(optimizer) in {*_ELEMENT_BY_ELEMENT, Muon} for optimizer in optimizers)
    return bool(parts) and plain and simple and dist.get_backend() == "gloo" and dist.get_world_size() > 1


def _is_of(value: Any, parameter: Tensor) -> bool:
    """Whether a value of an optimizer's state is one number for each of a parameter."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _wait() -> None:
    """Until every process is here."""
    dist.all_reduce(torch.zeros(1))
