"""Gradients that meet in memory are those that gloo would have sent, or weighted means."""

import os

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from espnet_bestow import shared_gradients
from espnet_bestow.shared_gradients import SharedGradients
from tests.processes import in_processes


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 300), nn.Linear(300, 3)).to(dtype)
    layers[0].bias.requires_grad_(False)
    return layers


class WithLoss(nn.Module):
    """A model with a loss: a mean over rows, whose number is its weight unless all count the same."""

    def __init__(self, weighed: bool = True, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.layers = model(dtype)
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.weighed = weighed

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        weight = float(len(x)) if self.weighed else 1.0
        return self.layers(x).square().mean()[None], {}, torch.tensor([weight])


def trained(rank: int, steps: int, share: bool) -> tuple[bool, list[torch.Tensor]]:
    """Whether memory was shared, and the weights after some steps of two passes each."""
    copy = WithLoss(weighed=False)
    shared = SharedGradients.join(copy) if share else None
    parallel = shared or DistributedDataParallel(copy, find_unused_parameters=True)
    optimizer = torch.optim.SGD(copy.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(2):
            loss = parallel(torch.randn(4 + rank, 5, generator=data))[0]
            loss /= 2  # in place, as ESPnet's trainer does
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parallel.parameters(), 0.1)
        optimizer.step()
    return shared is not None, [each.detach() for each in copy.parameters()]


def both_ways(rank: int) -> list[tuple[bool, list[torch.Tensor]]]:
    return [trained(rank, 7, share) for share in (False, True)]


def weighed(rank: int) -> list[list[torch.Tensor]]:
    """Gradients of steps with as many rows as processes have; then those of this process alone."""
    copy = WithLoss()
    shared = SharedGradients.join(copy)
    assert shared is not None

    def gradients(model: nn.Module, step: int) -> list[torch.Tensor]:
        copy.zero_grad()
        model(rows(rank, step))[0].backward()
        return [each.grad.clone() for each in copy.parameters() if each.grad is not None]

    found = [gradients(shared, step) for step in range(3)]
    with torch.no_grad():
        shared(rows(rank, 0))  # a validation in between, of which nobody asks gradients
    found.append(gradients(shared, 3))
    shared(rows(rank, 0))  # a step that ended in between
    return [*found, gradients(copy, 0)]


def rows(rank: int, step: int) -> torch.Tensor:
    return torch.randn(2 + 5 * rank + step, 5, generator=torch.Generator().manual_seed(10 * step + rank))


@pytest.mark.parametrize("world", [2, 3])
def test_a_mean_over_rows_is_that_of_all_rows(tmp_path, world):
    alone = WithLoss()
    for rank, found in enumerate(in_processes(weighed, world, tmp_path)):
        for step, (unused, *gradients) in enumerate(found[:-1]):
            alone.zero_grad()
            alone(torch.cat([rows(rank, step) for rank in range(world)]))[0].backward()
            torch.testing.assert_close(gradients, [each.grad for each in alone.parameters() if each.grad is not None])
            assert unused.tolist() == [0.0, 0.0]
        alone.zero_grad()
        alone(rows(rank, 0))[0].backward()
        torch.testing.assert_close(found[-1], [each.grad for each in alone.parameters() if each.grad is not None])


def where_there_is_none(rank: int) -> list[bool]:
    refused = [SharedGradients.join(WithLoss(dtype=torch.float64)) is None]
    if rank == 1:
        shared_gradients._open = lambda *_: None  # as if on another machine
    refused.append(not trained(rank, 2, True)[0])
    shared_gradients._MOST = 1000
    refused.append(not trained(rank, 2, True)[0])
    return refused


@pytest.mark.parametrize("world", [2, 3])
def test_training_is_the_same(tmp_path, world):
    for (sent, expected), (shared, found) in in_processes(both_ways, world, tmp_path):
        assert shared and not sent
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)  # gloo adds in another order, norms are of one tensor


def test_processes_agree_where_there_is_no_common_memory(tmp_path):
    assert in_processes(where_there_is_none, 2, tmp_path) == [[True] * 3] * 2


def test_what_is_not_the_file_that_was_meant_is_refused(tmp_path):
    assert shared_gradients._open(0, 0, b"secret", 24) is None  # nobody has this number
    with open(tmp_path / "other", "w+b") as other:
        other.write(b"something else, long enough")
        other.flush()
        assert shared_gradients._open(os.getpid(), other.fileno(), b"secret", 24) is None
