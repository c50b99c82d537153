"""Muon: matrices learn by their polar factors, the rest as with AdamW."""

import itertools

import pytest
import torch
from torch import nn

from espnet_bestow.muon import Muon, by_kind, polar_factors


class Net(nn.Module):
    """A layer of each kind."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(11, 8)
        self.wide = nn.Linear(8, 20)
        self.pointwise = nn.Conv1d(20, 8, 1)
        self.convolution = nn.Conv1d(8, 8, 3, padding=1)
        self.norm = nn.LayerNorm(8)
        self.tied = nn.Linear(8, 11, bias=False)
        self.tied.weight = self.table.weight
        self.classes = nn.Linear(8, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids (B, U) -> loss ()."""
        x = self.wide(self.table(ids)).tanh()
        x = self.norm(self.convolution(self.pointwise(x.mT)).mT)
        return self.tied(x).logsumexp(-1).mean() + self.classes(x).square().mean()


def batch(seed: int) -> torch.Tensor:
    return torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(seed))


def names(net: nn.Module, parameters: list[nn.Parameter]) -> set[str]:
    return {name for name, each in net.named_parameters() if any(each is other for other in parameters)}


def test_matrices_are_what_leads_from_hidden_to_hidden():
    net = Net()
    matrices, rest = by_kind(net, [net.classes, None])
    assert names(net, matrices["params"]) == {"wide.weight", "pointwise.weight"}
    assert names(net, matrices["params"] + rest["params"]) == {name for name, _ in net.named_parameters()}
    assert len(matrices["params"] + rest["params"]) == len(list(net.parameters()))
    assert [group["matrices"] for group in by_kind(nn.LayerNorm(3))] == [False]
    assert [group["matrices"] for group in by_kind(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)))] == [False]


@pytest.mark.parametrize("shape", [(3, 12, 12), (2, 8, 32), (2, 32, 8), (1, 1, 5)])
@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_polar_factors_have_singular_values_near_one(shape, size):
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = polar_factors(size * matrices)
    largest = values.pow(4).sum(-1, keepdim=True).pow(0.25)
    turned = (left.mT @ found @ right.mT).diagonal(dim1=1, dim2=2)  # the same directions
    assert ((turned - 1.0).abs() < 0.11)[values > 0.021 * largest].all()
    assert (turned < 1.11).all()
    torch.testing.assert_close(left @ torch.diag_embed(turned) @ right, found, rtol=0, atol=1e-4)


def test_polar_factors_of_nothing_and_of_one_direction():
    assert not polar_factors(torch.zeros(2, 3, 4)).any()
    one = torch.outer(torch.arange(1.0, 4.0), torch.arange(1.0, 5.0))[None]
    torch.testing.assert_close(polar_factors(one), one / one.norm(), rtol=0.11, atol=1e-5)


def test_the_rest_learns_as_with_adamw():
    ours, theirs = Net(), Net()
    options = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}
    muon = Muon([{"params": list(ours.parameters()), "matrices": False}], **options)
    adamw = torch.optim.AdamW(theirs.parameters(), **options)
    for number in range(4):
        for net, optimizer in ((ours, muon), (theirs, adamw)):
            net(batch(number)).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_a_step_has_the_size_that_is_asked_for():
    net = Net()
    before = net.wide.weight.detach().clone()
    muon = Muon(by_kind(net), lr=0.5, rms=0.3, weight_decay=0.0)
    net(batch(0)).backward()
    muon.step()
    moved = net.wide.weight.detach() - before
    assert moved.square().mean().sqrt().item() == pytest.approx(0.5 * 0.3, rel=0.1)


def test_weights_decay_whatever_the_gradient():
    net = nn.Linear(6, 6, bias=False)
    before = net.weight.detach().clone()
    net.weight.grad = torch.zeros(6, 6)
    Muon(by_kind(net), lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(net.weight.detach(), 0.95 * before)


def test_matrices_may_learn_at_every_other_step():
    net = Net()
    muon = Muon(by_kind(net), lr=0.01, every=2)
    weights = [net.wide.weight.detach().clone()]
    for number in range(4):
        net(batch(number)).backward()
        muon.step()
        muon.zero_grad()
        weights.append(net.wide.weight.detach().clone())
    assert [one.equal(other) for one, other in itertools.pairwise(weights)] == [True, False, True, False]


def test_a_checkpoint_continues():
    def trained(net: Net, muon: Muon, numbers: range) -> dict:
        for number in numbers:
            net(batch(number)).backward()
            muon.step()
            muon.zero_grad()
        return net.state_dict()

    whole, first, second = Net(), Net(), Net()
    expected = trained(whole, Muon(by_kind(whole), every=2), range(5))
    muon = Muon(by_kind(first), every=2)
    second.load_state_dict(trained(first, muon, range(3)))
    again = Muon(by_kind(second), every=2)
    again.load_state_dict(muon.state_dict())
    torch.testing.assert_close(trained(second, again, range(3, 5)), expected, rtol=0, atol=0)


def test_it_learns():
    net = Net()
    muon = Muon(by_kind(net, [net.classes]), lr=0.02)
    losses = []
    for _ in range(60):
        losses.append(net(batch(0)))
        losses[-1].backward()
        muon.step()
        muon.zero_grad()
    assert losses[-1] < 0.1 * losses[0]


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"momentum": 1.0}, {"rms": 0.0}, {"every": 0}, {"every": 1.5}])
def test_what_makes_no_sense_is_an_error(wrong):
    (name, value), net = *wrong.items(), nn.Linear(2, 2)
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Muon(by_kind(net), **wrong)


def test_vectors_are_no_matrices():
    with pytest.raises(ValueError, match=r"\(3,\)"):
        Muon([{"params": [nn.Parameter(torch.ones(3))], "matrices": True}])
