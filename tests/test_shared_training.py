"""Processes that share memory train as those do that send gradients, or as one with the rows of all."""

import itertools
import os
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from espnet_bestow import common_memory
from espnet_bestow.muon import Muon, by_kind
from espnet_bestow.shared_training import training_together
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


def sgd(copy: nn.Module) -> list[torch.optim.Optimizer]:
    return [torch.optim.SGD(copy.parameters(), lr=0.1, momentum=0.5)]


def adamw(copy: nn.Module) -> list[torch.optim.Optimizer]:
    """Two groups, of which one has what does not learn."""
    few, many = [], []
    for each in copy.parameters():
        (few if each.ndim == 1 else many).append(each)
    groups = [{"params": many, "weight_decay": 0.1}, {"params": few, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, lr=0.01, fused=True)]


def muon(copy: nn.Module) -> list[torch.optim.Optimizer]:
    """Matrices learn whole, at every other step; with three processes each has one."""
    return [Muon(by_kind(copy), lr=0.01, every=2, weight_decay=0.0)]


def muon_of_one_matrix(copy: WithLoss) -> list[torch.optim.Optimizer]:
    """Of which most processes have nothing."""
    many, one = copy.layers[0].weight, copy.layers[2].weight
    rest = [each for each in copy.parameters() if each is not one and each is not many]
    groups = [{"params": [one], "matrices": True}, {"params": [*rest, many], "matrices": False}]
    return [Muon(groups, lr=0.01, weight_decay=0.0)]


def two_of_them(copy: WithLoss) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.Adagrad(copy.layers[0].parameters(), lr=0.1),
        torch.optim.RMSprop([*copy.layers[2:].parameters(), copy.unused], lr=0.01, momentum=0.3, eps=0.1),
    ]


def step(parallel: nn.Module, optimizers: list[torch.optim.Optimizer], data: list[torch.Tensor], norm=2.0) -> float:
    """One step of some passes, as ESPnet's trainer makes it; returns the norm."""
    for x in data:
        loss = parallel(x)[0]
        loss /= len(data)  # in place, as that trainer does
        loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parallel.parameters(), 0.1, norm)
    for each in optimizers:
        each.step()
        each.zero_grad()
    return norm.item()


def rows(rank: int, step: int, fewest: int = 2) -> torch.Tensor:
    return torch.randn(fewest + 5 * rank + step, 5, generator=torch.Generator().manual_seed(10 * step + rank))


def contents(copy: nn.Module, optimizers: list[torch.optim.Optimizer]) -> tuple:
    return deepcopy(copy.state_dict()), [deepcopy(each.state_dict()) for each in optimizers]


def both_ways(rank: int) -> list:
    """Of each kind of optimizer: shared, what two epochs of three steps with two passes found, and so by gloo."""
    found = []
    for make in (sgd, adamw, two_of_them, muon, muon_of_one_matrix):
        one, other = WithLoss(weighed=False), WithLoss(weighed=False)
        ours, theirs = make(one), make(other)
        storages = [each.data_ptr() for each in one.parameters()]
        parallel = DistributedDataParallel(other, find_unused_parameters=True)
        for epoch in range(2):
            data = [[rows(rank, 6 * epoch + 2 * at + half) for half in range(2)] for at in range(3)]
            with training_together(one, ours) as shared:
                norms = [step(shared, ours, each) for each in data]
            other_norms = [step(parallel, theirs, each) for each in data]
            found.append((contents(one, ours), contents(other, theirs), norms, other_norms))
        assert storages == [each.data_ptr() for each in one.parameters()]
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_training_is_the_same(processes, world):
    ranks = processes[world]["both_ways"]
    for ours, theirs, norms, other_norms in ranks[0]:
        close(ours, fill_in(theirs, ours))  # gloo adds in another order
        close(norms, other_norms)
    for found in ranks[1:]:
        for (ours, *_), (first, *_) in zip(found, ranks[0], strict=True):
            torch.testing.assert_close(ours, first, rtol=0, atol=0)


def close(one, other) -> None:
    torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-5)


def fill_in(theirs: tuple, ours: tuple) -> tuple:
    """What an optimizer has never seen a gradient of has no state by gloo, and zeros here."""
    for their, our in zip(theirs[1], ours[1], strict=True):
        for number, state in our["state"].items():
            if number not in their["state"]:
                assert all(not value.any() for name, value in state.items() if name != "step")
                their["state"][number] = state
    return theirs


def weighed(rank: int) -> list:
    """Weights after steps with as many rows as processes have, of a norm of another kind."""
    copy = WithLoss()
    optimizers, found = sgd(copy), []
    for number in range(3):
        with training_together(copy, optimizers, norm_type=1.0) as shared:
            assert shared is not None
            norm = step(shared, optimizers, [rows(rank, number)], norm=1.0)
            with torch.no_grad():
                shared(rows(rank, 0))  # a validation in between, of which nobody asks gradients
            shared(rows(rank, 0))  # a step that ended in between
        found.append((norm, deepcopy(copy.state_dict())))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_a_mean_over_rows_is_that_of_all_rows(processes, world):
    ranks, alone = processes[world]["weighed"], WithLoss()
    optimizers = sgd(alone)
    for number in range(3):
        norm = step(alone, optimizers, [torch.cat([rows(rank, number) for rank in range(world)])], norm=1.0)
        for found in ranks:
            close(found[number], (norm, alone.state_dict()))


def not_finite(rank: int) -> list:
    """Norms of a step in which one process has a number that is none, and the weights while nobody learns from it."""
    copy = WithLoss()
    before, optimizers = deepcopy(copy.state_dict()), sgd(copy)
    with training_together(copy, optimizers) as shared:
        shared(rows(rank, 0) * (float("inf") if rank == 1 else 1.0))[0].backward()
        norm = torch.nn.utils.clip_grad_norm_(shared.parameters(), 0.1)
        optimizers[0].zero_grad()
    same = all(value.equal(before[name]) for name, value in copy.state_dict().items())
    return [bool(norm.isfinite()), same]


def test_all_processes_see_that_one_has_no_number(processes):
    assert processes[2]["not_finite"] == [[False, True]] * 2


def resumed(rank: int) -> list:
    """Of two kinds of optimizers: two epochs, and the second one alone from the checkpoint of the first one."""
    return [resumed_with(make, rank) for make in (adamw, muon)]


def resumed_with(make, rank: int) -> list:
    copy = WithLoss()
    optimizers = make(copy)

    def epoch(copy: nn.Module, optimizers: list[torch.optim.Optimizer], number: int) -> tuple:
        with training_together(copy, optimizers) as shared:
            step(shared, optimizers, [rows(rank, number)])
        return contents(copy, optimizers)

    weights, states = epoch(copy, optimizers, 0)
    whole = epoch(copy, optimizers, 1)
    again = WithLoss()
    again.load_state_dict(weights)
    others = make(again)
    for each, state in zip(others, states, strict=True):
        each.load_state_dict(state)
    return [whole, epoch(again, others, 1)]


def test_a_checkpoint_is_whole(processes):
    for whole, again in itertools.chain(*processes[2]["resumed"]):
        torch.testing.assert_close(whole, again, rtol=0, atol=0)


class Together(torch.optim.Adam):
    """Another kind, which may look at a number's neighbours."""


def where_there_is_none(rank: int) -> list[bool]:
    def refused(copy: nn.Module, optimizers: list[torch.optim.Optimizer]) -> bool:
        before = contents(copy, optimizers)
        with training_together(copy, optimizers) as shared:
            pass
        torch.testing.assert_close(contents(copy, optimizers), before, rtol=0, atol=0)
        return shared is None

    copy, frozen = WithLoss(), WithLoss().requires_grad_(False)
    found = [refused(each, sgd(each)) for each in (WithLoss(dtype=torch.float64), frozen)]
    found.append(refused(copy, [Together(copy.parameters())]))
    opened = common_memory._open
    if rank == 1:
        common_memory._open = lambda *_: None  # as if on another machine
    found.append(refused(copy, sgd(copy)))
    common_memory._open, common_memory._MOST = opened, 1000
    return [*found, refused(copy, sgd(copy))]


def test_processes_agree_where_it_cannot_be_shared(processes):
    assert processes[2]["where_there_is_none"] == [[True] * 5] * 2


def test_what_is_not_the_file_that_was_meant_is_refused(tmp_path):
    assert common_memory._open(0, 0, b"secret", 24) is None  # nobody has this number
    with open(tmp_path / "other", "w+b") as other:
        other.write(b"something else, long enough")
        other.flush()
        assert common_memory._open(os.getpid(), other.fileno(), b"secret", 24) is None


def all_of_them(rank: int) -> dict[str, list]:
    few = (not_finite, resumed, where_there_is_none) if dist.get_world_size() == 2 else ()
    return {work.__name__: work(rank) for work in (both_ways, weighed, *few)}


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """world -> name -> what the processes found, which take long to begin."""
    found = {world: in_processes(all_of_them, world, tmp_path_factory.mktemp("processes")) for world in (2, 3)}
    return {world: {name: [rank[name] for rank in ranks] for name in ranks[0]} for world, ranks in found.items()}
