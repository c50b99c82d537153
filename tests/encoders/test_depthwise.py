"""Depthwise convolutions with channels last compute what nn.Conv1d computes."""

import copy

import pytest
import torch
from torch import nn

from espnet_bestow.encoders.depthwise import ChannelsLastConv1d, quicken_depthwise


def network(**options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(6, 8, 3), nn.Conv1d(8, 8, 5, groups=8, **options))


@pytest.mark.parametrize(
    "options",
    [{"padding": 2}, {"stride": 2, "bias": False}, {"padding": 4, "dilation": 2}],
    ids=["padded", "strided without bias", "dilated"],
)
def test_values_and_gradients_are_those_of_conv1d(options):
    plain = network(**options).double()
    quick = copy.deepcopy(plain)
    quicken_depthwise(quick)
    assert [type(layer) for layer in quick] == [nn.Conv1d, ChannelsLastConv1d]
    a = torch.randn(3, 6, 17, dtype=torch.double, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    for network_, x in ((plain, a), (quick, b)):
        network_(x).square().sum().backward()
    torch.testing.assert_close(plain(a), quick(b))
    torch.testing.assert_close(a.grad, b.grad)
    for one, other in zip(plain.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_weights_keep_their_names_and_nothing_is_drawn():
    model = network()
    names, parameters = list(model.state_dict()), list(model.parameters())
    state = torch.get_rng_state()
    quicken_depthwise(model.eval())
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert not model[1].training


@pytest.mark.parametrize(
    "conv",
    [nn.Conv1d(8, 8, 3, groups=4), nn.Conv1d(8, 16, 3, groups=8), nn.Conv1d(8, 8, 3, groups=8, padding="same")],
    ids=["grouped", "more channels", "named padding"],
)
def test_other_convolutions_stay(conv):
    model = nn.Sequential(conv)
    quicken_depthwise(model)
    assert model[0] is conv
