"""Linear layers for a few rows against F.linear: every number of rows, every instruction set."""

import pytest
import torch
import torch.nn.functional as F

from espnet_bestow import ops
from espnet_bestow.ops import reference
from tests.ops.instruction_sets import ISAS, run_with

needs_kernels = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")


def problem(rows: int, inputs: int, outputs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=random) for shape in ((rows, inputs), (outputs, inputs), (outputs,)))  # type: ignore[return-value]


def largest_error(rows: int, inputs: int, outputs: int, biased: bool) -> float:
    """Of the kernel against float64, beside numbers of about sqrt(inputs)."""
    x, weight, bias = problem(rows, inputs, outputs)
    got = ops.native.panel_linear(x, reference.panels(weight), bias if biased else None)
    right = F.linear(x.double(), weight.double(), bias.double() if biased else None)
    return float((got - right).abs().max()) / inputs**0.5


def test_panels_hold_the_weights():
    x, weight, bias = problem(3, 5, 48)
    torch.testing.assert_close(reference.panel_linear(x, reference.panels(weight), bias), F.linear(x, weight, bias))


@needs_kernels
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rows", range(1, 28))
def test_every_number_of_rows(rows, biased):
    for inputs in (1, 2, 3, 7, 64):
        assert largest_error(rows, inputs, 32, biased) < 3e-6


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    code = """
from tests.ops.test_panel_linear import largest_error
assert max(largest_error(rows, inputs, 48, True) for rows in (*range(1, 14), 29) for inputs in (1, 5, 33)) < 3e-6
"""
    run_with(isa, code)


@needs_kernels
@pytest.mark.parametrize("rows", [1, 3, 8, 40])
def test_error_over_many_inputs_is_at_most_twice_that_of_pytorch(rows):
    for inputs in (512, 4096):
        x, weight, _ = problem(rows, inputs, 64)
        exact = F.linear(x.double(), weight.double())
        ours = ops.native.panel_linear(x, reference.panels(weight), None)
        assert (ours - exact).square().mean() <= 4 * (F.linear(x, weight) - exact).square().mean()


@needs_kernels
def test_any_leading_dimensions_and_strides():
    x, weight, bias = problem(12, 8, 16)
    panels = reference.panels(weight)
    for view in (x.view(2, 6, 8), x.view(2, 3, 2, 8).transpose(1, 2), x[::3], x[0], x[:0]):
        torch.testing.assert_close(ops.native.panel_linear(view, panels, bias), F.linear(view, weight, bias))


@needs_kernels
def test_opcheck():
    x, weight, bias = problem(3, 8, 32)
    torch.library.opcheck(torch.ops.bestow.panel_linear.default, (x, reference.panels(weight), bias))
    torch.library.opcheck(torch.ops.bestow.panel_linear.default, (x, reference.panels(weight), None))


@needs_kernels
def test_what_does_not_fit_is_refused():
    x, weight, bias = problem(3, 8, 32)
    panels = reference.panels(weight)
    for wrong in ((x[:, :7], panels, bias), (x, panels, bias[:31]), (x.double(), panels, bias), (x, weight, bias)):
        with pytest.raises(RuntimeError, match="panel_linear"):
            torch.ops.bestow.panel_linear(*wrong)
    assert not ops.native.takes_panels(torch.zeros(31, 8))
    assert not ops.native.takes_panels(weight.double())
