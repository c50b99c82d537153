"""Convolutions over time, channel by channel: the compiled op against its twin, values and gradients."""

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.ops import reference
from tests.ops.instruction_sets import ISAS, run_with

native = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")


def problem(seed: int) -> list[torch.Tensor]:
    """Frames, weight, bias or None, and the gradient of what comes out."""
    draw = torch.Generator().manual_seed(seed)
    batch, rows, width, kernel = (int(torch.randint(1, most, (), generator=draw)) for most in (4, 20, 40, 21))
    frames = torch.randn(batch, width, rows + kernel - 1, generator=draw).mT  # as a layer before it may leave them
    weight, bias = torch.randn(width, 1, kernel, generator=draw), torch.randn(width, generator=draw)
    return [frames, weight, bias if seed % 3 else None, torch.randn(batch, rows, width, generator=draw)]


def results(convolve, frames, weight, bias, gradient) -> list[torch.Tensor]:
    """Of a function: what comes out, and gradients."""
    leaves = [each.detach().clone().requires_grad_() for each in (frames, weight, bias) if each is not None]
    out = convolve(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


def check(seeds) -> None:
    for seed in seeds:
        each = problem(seed)
        exact = results(reference.depthwise, *(x if x is None else x.double() for x in each))
        for found, right in zip(results(ops.depthwise, *each), exact, strict=True):
            torch.testing.assert_close(found.double(), right, rtol=1e-5, atol=2e-5, msg=lambda m, s=seed: f"{s}: {m}")


@native
def test_the_compiled_op_finds_what_its_twin_finds():
    check(range(200))


@pytest.mark.parametrize("isa", ISAS)
def test_all_instruction_sets(isa):
    run_with(isa, "from tests.ops.test_depthwise import check; check(range(25))")


@native
def test_the_error_of_sums_over_many_frames_is_at_most_twice_that_of_pytorch():
    draw = torch.Generator().manual_seed(0)
    frames, gradient = (torch.randn(8, rows, 8, generator=draw) for rows in (1008, 1000))
    weight = torch.zeros(8, 1, 9)
    exact = results(reference.depthwise, frames.double(), weight.double(), None, gradient.double())[2]
    ours, theirs = (results(f, frames, weight, None, gradient)[2] for f in (ops.depthwise, reference.depthwise))
    assert (ours - exact).square().mean() <= 4 * (theirs - exact).square().mean()


@native
def test_only_what_is_wanted_has_a_gradient():
    frames, weight, _, gradient = problem(0)
    weight.requires_grad_()
    ops.depthwise(frames, weight).backward(gradient)
    assert weight.grad is not None and frames.grad is None
    with torch.no_grad():
        assert not ops.depthwise(frames, weight).requires_grad


@native
def test_a_second_derivative_is_refused_not_wrong():
    frames, weight, *_ = problem(0)
    out = ops.depthwise(frames, weight.requires_grad_()).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out, weight, create_graph=True)


@native
def test_the_ops_trace():
    frames, weight, bias, gradient = problem(1)
    taps = weight[:, 0].t().contiguous()
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.bestow.depthwise, (frames, taps, bias), test_utils=tests)
    torch.library.opcheck(torch.ops.bestow.depthwise_taps, (frames, gradient), test_utils=tests)


def test_what_has_no_kernel_is_computed_all_the_same():
    frames, weight, bias, _ = problem(1)
    exact = reference.depthwise(frames.double(), weight.double(), bias.double())
    torch.testing.assert_close(ops.depthwise(frames.double(), weight.double(), bias.double()), exact)
    with torch.autocast("cpu"):
        torch.testing.assert_close(
            ops.depthwise(frames, weight, bias), reference.depthwise(frames, weight, bias), rtol=0, atol=0
        )
    with pytest.raises(RuntimeError):
        ops.depthwise(frames[:, : weight.shape[2] - 1], weight, bias)


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 5, 4).double()}, "x must be float32"),
        ({"x": torch.zeros(5, 4)}, r"x must be float32 \(B, T, C\)"),
        ({"x": torch.zeros(1, 1, 4)}, "a kernel of 3 over 1 frames"),
        ({"taps": torch.zeros(3, 5)}, "taps has 15 numbers where 12 belong"),
        ({"taps": torch.zeros(4, 3).t()}, "taps"),
        ({"taps": torch.zeros(0, 4)}, "a kernel of 0"),
        ({"bias": torch.zeros(3)}, "bias has 3 numbers where 4 belong"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    inputs = {"x": torch.zeros(1, 5, 4), "taps": torch.zeros(3, 4), "bias": None} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.bestow.depthwise(*inputs.values())


@native
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 3, 5), (1, 6, 4)])
def test_a_gradient_of_other_frames_is_refused(shape):
    with pytest.raises(RuntimeError, match="depthwise_taps: a gradient of"):
        torch.ops.bestow.depthwise_taps(torch.zeros(1, 5, 4), torch.zeros(shape))
