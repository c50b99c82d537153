"""Strided convolutions as products over windows compute what nn.Conv1d computes."""

import pytest
import torch
from torch import nn

from espnet_bestow.encoders.strided import StridedConv1d


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("frames", [5, 16, 17])
@pytest.mark.parametrize(("kernel", "stride"), [(5, 2), (3, 2), (4, 2), (5, 1), (2, 3), (5, 3)])
def test_values_and_gradients_are_those_of_conv1d(padding, frames, kernel, stride):
    torch.manual_seed(0)
    plain = nn.Conv1d(3, 4, kernel, stride=stride, padding=padding, dtype=torch.double)
    quick = StridedConv1d(3, 4, kernel, stride=stride, padding=padding, dtype=torch.double)
    quick.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, frames, dtype=torch.double)
    inputs = x.clone().requires_grad_(), x.clone().requires_grad_()
    for conv, given in zip((plain, quick), inputs, strict=True):
        conv(given).square().sum().backward()
    torch.testing.assert_close(quick(x), plain(x))
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    torch.testing.assert_close(quick.weight.grad, plain.weight.grad)
    torch.testing.assert_close(quick.bias.grad, plain.bias.grad)


def test_input_shorter_than_the_kernel_is_an_error_as_in_conv1d():
    with pytest.raises(RuntimeError):
        StridedConv1d(3, 4, 5)(torch.zeros(1, 3, 4))
