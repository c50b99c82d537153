"""Linear layers with small weights against float64."""

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.ops import FEW_ROWS, few_rows_linear, linear
from tests.ops.instruction_sets import ISAS, run_with

DTYPES = [torch.float32, torch.bfloat16, torch.int8]
SHAPES = [(1, 1), (7, 5), (33, 9), (64, 33), (515, 17)]  # (K, N): with and without tails


def problem(rows, inputs, outputs, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    if dtype != torch.int8:
        return x, torch.randn(outputs, inputs, generator=generator).to(dtype), None, bias
    weight = torch.randint(-128, 128, (outputs, inputs), generator=generator).to(torch.int8)
    return x, weight, torch.rand(outputs, generator=generator) + 0.1, bias


def errors(x, weight, scale, bias):
    """Distance from float64, and how far the stated rounding may lead: both (M, N)."""
    dense = weight.double() * (1 if scale is None else scale.double()[:, None])
    exact = x.double() @ dense.T + bias
    size = x.double().abs() @ dense.abs().T + bias.abs()
    allowed = 1e-6 * size
    if scale is not None:
        # Half a step of the input, times the weights it meets.
        allowed = allowed + x.abs().amax(1, keepdim=True) / 2 / 8191 * dense.abs().sum(1)
    return (few_rows_linear(x, weight, scale, bias) - exact).abs(), allowed


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "int8"])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 9, 12, 16, 17, 64])
def test_error_is_what_is_stated(dtype, rows):
    for inputs, outputs in SHAPES:
        off, allowed = errors(*problem(rows, inputs, outputs, dtype))
        assert (off <= allowed).all(), (inputs, outputs, off.max())


def test_sums_of_many_extreme_products_do_not_overflow():
    inputs = 8192
    x, weight = torch.ones(1, inputs), torch.full((2, inputs), -128, dtype=torch.int8)
    out = few_rows_linear(x, weight, torch.ones(2), torch.zeros(2))
    torch.testing.assert_close(out, torch.full((1, 2), -128.0 * inputs), rtol=1e-6, atol=0)


def test_of_no_inputs_the_bias_is_left():
    for dtype in DTYPES:
        x, weight, scale, bias = problem(2, 0, 3, dtype)
        assert few_rows_linear(x, weight, scale, bias).equal(bias.expand(2, 3))


def test_a_gradient_that_is_wanted_is_not_lost():
    x, weight, scale, bias = problem(2, 5, 3, torch.int8)
    x.requires_grad_(), bias.requires_grad_()
    few_rows_linear(x, weight, scale, bias).sum().backward()
    torch.testing.assert_close(x.grad, (weight.float() * scale[:, None]).sum(0).expand(2, 5))
    assert bias.grad.equal(torch.full((3,), 2.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "bf16", "int8"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_row(dtype, bad):
    x, weight, scale, bias = problem(3, 40, 6, dtype)
    clean = few_rows_linear(x, weight, scale, bias)
    x[1, 5] = bad
    out = few_rows_linear(x, weight, scale, bias)
    assert not out[1].isfinite().any() or dtype != torch.int8
    assert not out[1].isfinite().all()
    assert out[[0, 2]].equal(clean[[0, 2]])


@pytest.mark.parametrize("rows", [5, 37])
def test_rows_do_not_depend_on_each_other(rows):
    """By our kernels few rows give the same bits as one; sums of many are taken in another order."""
    for dtype in DTYPES:
        x, weight, scale, bias = problem(rows, 70, 19, dtype)
        together = few_rows_linear(x, weight, scale, bias)
        alone = torch.cat([few_rows_linear(row[None], weight, scale, bias) for row in x])
        if ops.native is not None and (rows == 5 or dtype != torch.float32):
            assert together.equal(alone)
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-4)
        x[1] = float("nan")
        spoiled = few_rows_linear(x, weight, scale, bias)
        torch.testing.assert_close(spoiled[2:], together[2:], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    code = """
import torch
from tests.ops.test_few_rows import DTYPES, SHAPES, errors, problem
for dtype in DTYPES:
    for rows in (1, 2, 5, 8, 19, 40):
        for shape in SHAPES:
            off, allowed = errors(*problem(rows, *shape, dtype, seed=rows))
            assert (off <= allowed).all(), (dtype, rows, shape)
"""
    run_with(isa, code)


def test_torch_accepts_the_op():
    if ops.native is None:
        pytest.skip("the compiled ops were not built")
    for dtype in DTYPES:
        torch.library.opcheck(torch.ops.bestow.few_rows_linear, problem(3, 20, 6, dtype))


def test_wrong_shapes_and_types_are_errors():
    x, weight, scale, bias = problem(2, 8, 4, torch.int8)
    with pytest.raises(ValueError, match=r"x \(2, 7\)"):
        few_rows_linear(x[:, :7], weight, scale, bias)
    with pytest.raises(ValueError, match=r"torch\.bfloat16"):
        few_rows_linear(x.bfloat16(), weight, scale, bias)
    with pytest.raises(ValueError, match="with a scale"):
        few_rows_linear(x, weight, None, bias)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_linear_is_torchs(rows, monkeypatch):
    """With any number of rows, with gradient or without, in other precisions, and over weights that are no block."""
    monkeypatch.setattr(ops, "MANY_WEIGHTS", 1)
    torch.manual_seed(0)
    weight, bias = torch.randn(6, 5), torch.randn(6)
    for x in (torch.randn(rows, 5), torch.randn(1, rows, 5), torch.randn(rows, 1, 5).transpose(0, 1)):
        with torch.no_grad():
            torch.testing.assert_close(linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias))
            torch.testing.assert_close(linear(x, weight, None), torch.nn.functional.linear(x, weight))
            spread = torch.randn(5, 6).T
            torch.testing.assert_close(linear(x, spread, None), torch.nn.functional.linear(x, spread))
            low = linear(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
            assert low.dtype == torch.bfloat16
        assert linear(x.requires_grad_(), weight, bias).requires_grad
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert linear(torch.randn(rows, 5), weight, bias).dtype == torch.bfloat16


def test_few_rows_without_gradient_take_the_kernel(monkeypatch):
    if ops.native is None:
        pytest.skip("the compiled ops were not built")
    calls = []
    monkeypatch.setattr(ops.native, "few_rows_linear", lambda *args: calls.append(1) or torch.zeros(len(args[0]), 6))
    weight = torch.randn(6, 5)
    with torch.no_grad():
        linear(torch.randn(1, 5), weight, None)
        monkeypatch.setattr(ops, "MANY_WEIGHTS", 30)
        assert calls == []
        linear(torch.randn(2, FEW_ROWS // 2, 5), weight, None)
        assert calls == [1]
        linear(torch.randn(FEW_ROWS + 1, 5), weight, None)
    linear(torch.randn(1, 5), weight, None)
    assert calls == [1]
