"""Smaller weights: what they change, and what not."""

import copy

import pytest
import torch
from torch import nn

from espnet_bestow.connectors import CONNECTORS, Speech
from espnet_bestow.quantize import WeightOnlyLinear, quantize
from espnet_bestow.seats import Seats

OPTIONS = {
    "blsp": {"bottleneck": 8},
    "cross_attention": {"dim": 32, "num_heads": 4},
    "per_layer": {"num_heads": 4, "gate": 0.7},
    "prepend": {"dim": 32, "num_heads": 4},
    "recurrent": {"hidden": 16, "num_heads": 4},
    "slm": {"num_heads": 2},
}
STEP = {"bf16": 2**-8, "int8": 1 / 254}


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("rows", [1, 4, 70])
def test_a_layer_is_off_by_the_rounding_of_its_weights(precision, rows):
    torch.manual_seed(0)
    linear, x = nn.Linear(32, 24), torch.randn(rows, 32)
    small = WeightOnlyLinear(linear, precision)
    largest = linear.weight.abs() if precision == "bf16" else linear.weight.abs().amax(1, keepdim=True)
    assert ((small.weight - linear.weight).abs() <= STEP[precision] * largest * 1.001).all()
    again = x.double() @ small.weight.double().T + linear.bias.double()
    torch.testing.assert_close(small(x).double(), again, rtol=1e-4, atol=1e-4)
    assert not small(x).equal(linear(x))


def test_dtype_and_leading_dimensions_are_kept():
    small = WeightOnlyLinear(nn.Linear(8, 4, bias=False), "int8")
    out = small(torch.randn(2, 3, 8, dtype=torch.bfloat16))
    assert out.shape == (2, 3, 4) and out.dtype == torch.bfloat16
    assert small.rounded.dtype == torch.int8 and small.in_features == 8


def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(8, 3)
    nn.init.zeros_(linear.weight)
    x = torch.randn(2, 8)
    assert WeightOnlyLinear(linear, "int8")(x).equal(linear.bias.detach().expand(2, -1))


def test_unknown_precisions_are_named():
    with pytest.raises(ValueError, match="precision='int3'"):
        quantize(nn.Sequential(nn.Linear(2, 2)), "int3")


@pytest.mark.parametrize("name", sorted(CONNECTORS))
@pytest.mark.parametrize("precision", ["bf16", "int8"])
@torch.inference_mode()
def test_connectors_in_smaller_weights_write_nearly_the_same(name, precision):
    """... in both of their states: speech projected once, and speech absorbed for sessions."""
    torch.manual_seed(0)
    connector = CONNECTORS[name].beside(24, 2, 6, **OPTIONS[name]).eval()
    small = copy.deepcopy(connector)
    quantize(small, precision)
    assert not any(type(module) is nn.Linear for module in small.modules())
    speech = Speech(torch.randn(1, 9, 6), torch.tensor([9]))
    text, mask = torch.randn(1, 3, 24), torch.ones(1, 3, dtype=torch.bool)
    visible = torch.tensor([[2, 5, 9]], dtype=torch.int32)

    def read(connector, state):
        found = connector(text, mask, visible, state)
        x = found.embeddings
        for reader in found.readers.values():
            x = reader(x)
        return x

    full = read(connector, connector.start(speech))
    size = full.abs().max()
    off = (read(small, small.start(speech)) - full).abs().max() / size
    assert 0 < off < {"bf16": 0.01, "int8": 0.03}[precision]
    if connector.hears_all:
        return  # it has no sessions
    seated, seats = small.seated(), Seats()
    seat = seats.take()
    seated.hear(seat, speech.frames[0])
    seated.sit(seats.place([seat], mask))
    absorbed = read(small, seated)
    torch.testing.assert_close(absorbed, read(small, small.start(speech)), rtol=0.01, atol=0.01)
