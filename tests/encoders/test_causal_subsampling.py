"""Sub-sampling of streams: native stages against PyTorch's, and wrong calls."""

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.encoders.causal_subsampling import CausalConv1dSubsampling, NativeStages, subsampled
from tests.ops.instruction_sets import ISAS, run_with


def subsampling(bins: int = 6, width: int = 48, **conf) -> CausalConv1dSubsampling:
    torch.manual_seed(0)
    return CausalConv1dSubsampling(bins, width, **conf).eval()


@torch.no_grad()
def both_ways(module: CausalConv1dSubsampling, scale: float = 1.0) -> None:
    """Streams that begin, that go on and that end here and there, three chunks of each; and whole recordings."""
    layers = len(module.layers)
    factor = 1 << layers
    native, plain = module.stages(), module.plain_stages()
    assert isinstance(native, NativeStages) and native.remembered == plain.remembered
    starts = [0, 0, 3, 40]
    pasts = [torch.zeros(4, native.remembered)] * 2
    last, beyond = 2 * factor + 1, 44 * factor  # the middle of the second chunk, the middle of the third
    for ends in ([1, None, None, None], [1, last, None, beyond], [1, last, 8 * factor - 2, beyond]):
        feats = scale * torch.randn(4, 2 * factor, 6)
        frames = []
        for number, stages in enumerate((native, plain)):
            out, pasts[number] = stages.advance(feats, pasts[number], starts, ends)
            frames.append(out)
        for one, other, start, end in zip(*frames, starts, ends, strict=True):
            count = 2 if end is None else min(max(subsampled(end, layers) - start, 0), 2)
            torch.testing.assert_close(one[:count], other[:count], rtol=0, atol=1e-5)
            assert not one[count:].any()
        starts = [start + 2 for start in starts]
    lengths = torch.tensor([1, 50, 3 * factor, 3 * factor + 1, 3 * factor - 1])
    feats = scale * torch.randn(5, 60, 6)
    whole = [stages.whole(feats, lengths) for stages in (native, plain)]
    torch.testing.assert_close(*whole, rtol=0, atol=1e-5)
    assert len(whole[0]) == subsampled(lengths, layers).sum()


needs_kernels = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")


@needs_kernels
@pytest.mark.parametrize("conf", [{}, {"num_layers": 2}, {"num_layers": 1, "kernel_size": 3}, {"kernel_size": 7}])
def test_native_stages_are_pytorchs(conf):
    both_ways(subsampling(**conf))
    both_ways(subsampling(**conf), scale=30.0)  # GELU from end to end


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    run_with(
        isa,
        "from tests.encoders.test_causal_subsampling import both_ways, subsampling\n"
        "both_ways(subsampling())\nboth_ways(subsampling(), 30.0)",
    )


@needs_kernels
def test_what_has_no_kernel_goes_stage_by_stage():
    assert NativeStages.fits(subsampling())
    assert not NativeStages.fits(subsampling(width=40))  # panels have 16 outputs
    assert not NativeStages.fits(subsampling().double())


@needs_kernels
def test_wrong_arguments_are_errors():
    stages = subsampling().stages()
    right = {
        "x": torch.randn(2, 16, 6), "past": torch.zeros(2, stages.remembered), "bounds": torch.tensor([[0, -1]] * 2),
        "weights": stages.weights, "count": 3, "eps": 1e-5,
    }  # fmt: skip
    out, past = ops.native.conv_subsampling(**right)
    assert out.shape == (2, 2, 48) and past.shape == (2, stages.remembered)
    for wrong in (
        {"x": torch.randn(2, 17, 6)}, {"x": torch.randn(2, 16, 7)}, {"x": torch.randn(2, 16, 6).double()},
        {"past": right["past"][:, 1:]}, {"past": right["past"][:1]}, {"bounds": right["bounds"][:1]},
        {"bounds": right["bounds"].int()}, {"weights": stages.weights[:-1]}, {"count": 2}, {"count": 0},
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            ops.native.conv_subsampling(**(right | wrong))
    torch.library.opcheck(
        torch.ops.bestow.conv_subsampling.default, tuple(right.values()), test_utils=("test_schema", "test_faketensor")
    )
    recordings = {name: right[name] for name in ("x", "weights", "count", "eps")} | {"lengths": torch.tensor([16, 3])}
    for wrong in (
        {"lengths": torch.tensor([17, 3])}, {"lengths": torch.tensor([16, -1])}, {"lengths": torch.tensor([16])},
        {"lengths": torch.tensor([16.0, 3.0])}, {"x": torch.randn(2, 16)}, {"weights": stages.weights[1:]},
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            ops.native.conv_subsampling_whole(**(recordings | wrong))
    arguments = tuple(recordings[name] for name in ("x", "lengths", "weights", "count", "eps"))
    torch.library.opcheck(torch.ops.bestow.conv_subsampling_whole.default, arguments, test_utils="test_schema")
