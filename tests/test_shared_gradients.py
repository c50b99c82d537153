"""Gradients that meet in memory are those that gloo would have sent, to the last bit, or weighted means."""

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


def trained(rank: int, steps: int, share: bool) -> tuple[bool, list[torch.Tensor]]:
    """Whether memory was shared, and the weights after some steps with buckets of one layer or two."""
    parallel = DistributedDataParallel(model(), bucket_cap_mb=0.001)
    joined = share and SharedGradients.join(parallel) is not None
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    data = torch.Generator().manual_seed(rank)
    for _ in range(steps):
        optimizer.zero_grad()
        parallel(torch.randn(4 + rank, 5, generator=data)).square().mean().backward()
        optimizer.step()
    return joined, [each.detach() for each in parallel.parameters()]


def both_ways(rank: int) -> list[tuple[bool, list[torch.Tensor]]]:
    return [trained(rank, 7, share) for share in (False, True)]


class Weighed(nn.Module):
    """A model with a loss: a mean over rows, whose number is its weight."""

    def __init__(self):
        super().__init__()
        self.layers = model()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        return self.layers(x).square().mean(), {}, torch.tensor([float(len(x))])


def weighed(rank: int) -> list[list[torch.Tensor]]:
    """Gradients of steps with as many rows as processes have; of the same steps weighed equally."""
    parallel = DistributedDataParallel(Weighed(), bucket_cap_mb=0.001)
    shared = SharedGradients.join(parallel)
    assert shared is not None

    def gradients(step: int) -> list[torch.Tensor]:
        parallel.zero_grad()
        parallel(rows(rank, step))[0].backward()
        return [each.grad.clone() for each in parallel.parameters() if each.grad is not None]

    with shared.weighing(parallel):
        by_weight = [gradients(step) for step in range(3)]
        parallel.eval()
        parallel(rows(rank, 0))  # a validation in between, of which nobody asks gradients
        parallel.train()
        by_weight.append(gradients(3))
        parallel(rows(rank, 0))  # a step that ended in between: its weights are nobody else's
    return [*by_weight, gradients(0)]


def rows(rank: int, step: int) -> torch.Tensor:
    return torch.randn(2 + 5 * rank + step, 5, generator=torch.Generator().manual_seed(10 * step + rank))


@pytest.mark.parametrize("world", [2, 3])
def test_a_mean_over_rows_is_that_of_all_rows(tmp_path, world):
    alone = Weighed()
    for found in in_processes(weighed, world, tmp_path):
        for step, gradients in enumerate(found[:-1]):
            alone.zero_grad()
            alone(torch.cat([rows(rank, step) for rank in range(world)]))[0].backward()
            expected = [each.grad for each in alone.parameters() if each.grad is not None]
            torch.testing.assert_close(gradients, expected)
        alone.zero_grad()
        (sum(alone(rows(rank, 0))[0] for rank in range(world)) / world).backward()
        expected = [each.grad for each in alone.parameters() if each.grad is not None]
        torch.testing.assert_close(found[-1], expected)


def where_there_is_none(rank: int) -> list[bool]:
    refused = [SharedGradients.join(DistributedDataParallel(model(torch.float64))) is None]
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
            if world == 2:
                assert one.equal(other)
            else:  # gloo adds in another order
                torch.testing.assert_close(one, other)


def test_processes_agree_where_there_is_no_common_memory(tmp_path):
    assert in_processes(where_there_is_none, 2, tmp_path) == [[True] * 3] * 2


def test_what_is_not_the_file_that_was_meant_is_refused(tmp_path):
    assert shared_gradients._open(0, 0, b"secret", 24) is None  # nobody has this number
    with open(tmp_path / "other", "w+b") as other:
        other.write(b"something else, long enough")
        other.flush()
        assert shared_gradients._open(os.getpid(), other.fileno(), b"secret", 24) is None
