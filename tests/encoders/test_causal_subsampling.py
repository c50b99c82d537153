"""Sub-sampling of streams: native stages against PyTorch's, and wrong calls."""

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.encoders.causal_subsampling import (
    CausalConv1dSubsampling,
    NativeStages,
    Piece,
    subsample,
    subsampled,
)
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
        pieces = [Piece(start, 2, end) for start, end in zip(starts, ends, strict=True)]
        frames = []
        for number, stages in enumerate((native, plain)):
            out, pasts[number] = stages.advance(feats, pasts[number], pieces)
            frames.append(out)
        for one, other, start, end in zip(*frames, starts, ends, strict=True):
            count = 2 if end is None else min(max(subsampled(end, layers) - start, 0), 2)
            torch.testing.assert_close(one[:count], other[:count], rtol=0, atol=1e-5)
            assert not one[count:].any()
        starts = [start + 2 for start in starts]
    lengths = torch.tensor([1, 50, 3 * factor, 3 * factor + 1, 3 * factor - 1])
    feats = scale * torch.randn(5, 60, 6)
    whole = [subsample(stages, feats, lengths) for stages in (native, plain)]
    torch.testing.assert_close(*whole, rtol=0, atol=1e-5)
    assert len(whole[0]) == subsampled(lengths, layers).sum()


def cut(stages, feats: torch.Tensor, cuts: list[list[int]]) -> list[torch.Tensor]:
    """Streams (B, T, 6) in pieces of so many frames, of each stream its own: all frames of each."""
    past, made = torch.zeros(len(feats), stages.remembered), [0] * len(feats)
    found: list[list[torch.Tensor]] = [[] for _ in feats]
    for counts in zip(*cuts, strict=True):
        spans = [(max(8 * start - 7, 0), 8 * (start + count) - 7) for start, count in zip(made, counts, strict=True)]
        rows = [row[first : max(last, first)] for row, (first, last) in zip(feats, spans, strict=True)]
        x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        pieces = [Piece(start, count, None) for start, count in zip(made, counts, strict=True)]
        out, past = stages.advance(x, past, pieces, block=4)
        for row, count in enumerate(counts):
            found[row].append(out[row, :count])
            made[row] += count
    return [torch.cat(each) for each in found]


@torch.no_grad()
def test_streams_may_go_on_by_different_numbers_of_frames():
    module, feats = subsampling(), torch.randn(3, 80, 6)
    for stages in (module.stages(), module.plain_stages()):
        whole = cut(stages, feats, [[10]] * 3)
        for cuts in ([[1, 4, 5], [0, 9, 1], [6, 1, 3]], [[4, 0, 6], [0, 8, 2], [8, 0, 2]]):
            exactly = isinstance(stages, NativeStages) and cuts[0][0] == 4  # blocks are what they are in one piece
            for one, other in zip(cut(stages, feats, cuts), whole, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=0 if exactly else 1e-5)


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
        "x": torch.randn(2, 16, 6), "past": torch.zeros(2, stages.remembered), "bounds": torch.tensor([[0, 2, -1]] * 2),
        "weights": stages.weights, "count": 3, "block": 9, "eps": 1e-5,
    }  # fmt: skip
    out, past = ops.native.conv_subsampling(**right)
    assert out.shape == (2, 2, 48) and past.shape == (2, stages.remembered)
    for wrong in (
        {"x": torch.randn(2, 16, 7)}, {"x": torch.randn(2, 16, 6).double()},
        {"past": right["past"][:, 1:]}, {"past": right["past"][:1]}, {"bounds": right["bounds"][:1]},
        {"bounds": right["bounds"].int()}, {"bounds": torch.tensor([[0, -1, -1]] * 2)},
        {"bounds": torch.tensor([[-1, 2, -1]] * 2)}, {"weights": stages.weights[:-1]}, {"count": 2}, {"count": 0},
        {"block": 0},
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            ops.native.conv_subsampling(**(right | wrong))
    torch.library.opcheck(torch.ops.bestow.conv_subsampling.default, tuple(right.values()), test_utils="test_schema")
