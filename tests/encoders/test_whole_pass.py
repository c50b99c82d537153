"""Recordings natively in the context `whole` against the encoder's own pass."""

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.encoders import StreamingFastConformerEncoder
from tests.encoders.test_chunk_step import tiny
from tests.ops.instruction_sets import ISAS, run_with

needs_kernels = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")


def whole(output_size: int = 32, **conf) -> StreamingFastConformerEncoder:
    return tiny(output_size, contexts=["whole"], **conf)


@torch.no_grad()
def largest_difference(encoder: StreamingFastConformerEncoder, lengths: list[int]) -> float:
    quick = encoder.whole_pass()
    assert quick is not None
    batch = torch.randn(len(lengths), max(lengths) + 5, 16)  # what is behind the end means nothing
    worst = 0.0
    for part in (slice(None), slice(0, 1), slice(1, None)):  # tables grow, and serve shorter ones
        counts = torch.tensor(lengths[part])
        expected, expected_lengths, _ = encoder(batch[part], counts)
        found = quick(batch[part], counts)
        assert [len(each) for each in found] == expected_lengths.tolist()
        for one, other in zip(found, expected, strict=True):
            worst = max(worst, float((one - other[: len(one)]).abs().max()))
    return worst


@needs_kernels
@pytest.mark.parametrize("subsampling", ["conv1d", "dw_striding"])
@pytest.mark.parametrize("lengths", [[1, 7, 8, 9], [100, 1, 64, 640, 333], [50] * 40])
def test_equals_the_encoders_pass(subsampling, lengths):
    assert largest_difference(whole(subsampling=subsampling), lengths) < 1e-5


@needs_kernels
def test_without_biases():
    encoder = whole(config={"attention_bias": False, "convolution_bias": False})
    assert largest_difference(encoder, [150, 30]) < 1e-5


@needs_kernels
def test_threads_share_recordings_or_layers():
    encoder = whole()
    threads = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            assert largest_difference(encoder, [900, 30, 700, 20, 20]) < 1e-5
        finally:
            torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    code = """
from tests.encoders.test_whole_pass import largest_difference, whole
for width in (32, 48):
    assert largest_difference(whole(width, subsampling="conv1d"), [130, 77, 8]) < 1e-5
"""
    run_with(isa, code)


@needs_kernels
@torch.no_grad()
@pytest.mark.parametrize("counts", [[30, 12, 9, 100, 1], [40], [13] * 20])
def test_frames_that_nobody_wants_change_nothing(counts):
    quick = whole().whole_pass()
    x, lengths = quick.begin(torch.randn(sum(counts), 32)), torch.tensor(counts)
    everything = quick.encode(x, lengths)
    for wanted in ([8, 12, 9, 77, 1], [1] * 5, [30, 1, 9, 1, 1]):
        asked = torch.tensor((wanted * 4)[: len(counts)]).minimum(lengths)
        for most, frames, complete in zip(asked, quick.encode(x, lengths, asked), everything, strict=True):
            assert len(frames) == most
            torch.testing.assert_close(frames, complete[:most], rtol=0, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 70, 201])
def test_a_frame_begins_the_same_whoever_is_beside_it(rows):
    quick = whole(48).whole_pass()
    x = torch.randn(rows, 48)
    found = quick.begin(x)
    assert found.shape == (rows, quick.begun_width)
    for size in (1, 3, 9, 64):
        assert torch.equal(found, torch.cat([found[:0], *(quick.begin(part) for part in x.split(size) if len(part))]))


@needs_kernels
def test_one_block_is_first_and_last():
    encoder = StreamingFastConformerEncoder(
        16, output_size=32, num_blocks=1, attention_heads=4, linear_units=48, subsampling="conv1d", contexts=["whole"]
    ).eval()
    assert largest_difference(encoder, [100, 1, 64, 333]) < 1e-5
    quick, lengths = encoder.whole_pass(), torch.tensor([30, 7])
    x = quick.begin(torch.randn(37, 32))
    asked = quick.encode(x, lengths, torch.tensor([4, 7]))
    for most, some, every in zip((4, 7), asked, quick.encode(x, lengths), strict=True):
        torch.testing.assert_close(some, every[:most], rtol=0, atol=1e-6)


@needs_kernels
def test_wrong_arguments_are_errors():
    quick = whole().whole_pass()
    quick._know(9)
    block = quick.blocks[0]
    right = {
        "x": torch.randn(12, 128), "lengths": torch.tensor([9, 3]), "wanted": torch.tensor([2, 3]),
        "weights": quick._weights, "blocks": len(quick.blocks), "kernel": block.kernel, "heads": block.heads,
        "size": quick._size, "eps": 1e-5, "scale": 1.0,
    }  # fmt: skip
    assert ops.native.conformer_whole(**right).shape == (5, 32)
    for wrong in (
        {"x": torch.randn(13, 128)}, {"x": torch.randn(11, 128)}, {"x": torch.randn(12, 128).double()},
        {"x": torch.randn(12, 32)},
        {"lengths": torch.tensor([9, 4])}, {"lengths": torch.tensor([12, 0])}, {"lengths": torch.tensor([9, 3]).int()},
        {"wanted": torch.tensor([10, 3])}, {"wanted": torch.tensor([0, 3])}, {"wanted": torch.tensor([2])},
        {"weights": quick._weights[1:]}, {"blocks": 1}, {"blocks": 0}, {"kernel": 0}, {"heads": 5}, {"size": 8},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"conformer|a step"):
            ops.native.conformer_whole(**(right | wrong))
    begun = {"x": torch.randn(12, 32), "weights": quick._beginning, "eps": 1e-5}
    for wrong in (
        {"x": torch.randn(12, 32).double()}, {"x": torch.randn(12, 48)}, {"x": torch.randn(12)},
        {"weights": quick._weights}, {"weights": quick._beginning[1:]},
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"conformer|a step"):
            ops.native.conformer_begin(**(begun | wrong))
    torch.library.opcheck(torch.ops.bestow.conformer_begin.default, tuple(begun.values()), test_utils="test_schema")
    torch.library.opcheck(torch.ops.bestow.conformer_whole.default, tuple(right.values()), test_utils="test_schema")


def test_other_contexts_and_layers_have_none():
    assert tiny().whole_pass() is None
    assert whole(40).whole_pass() is None  # panels have 16 outputs
    assert whole(config={"hidden_act": "relu"}).whole_pass() is None
    assert whole().double().whole_pass() is None
