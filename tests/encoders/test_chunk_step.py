"""Chunk by chunk equals the masked full pass: all contexts, streams at different positions, first and last chunks."""

import copy

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.encoders import StreamingFastConformerEncoder
from espnet_bestow.encoders.chunk_step import ChunkStep, EncoderState
from tests.ops.instruction_sets import ISAS, run_with

CONTEXTS = [(70, 13), (70, 6), (70, 1), (70, 0), (0, 3)]


def tiny(output_size: int = 32, **conf) -> StreamingFastConformerEncoder:
    torch.manual_seed(0)
    encoder = StreamingFastConformerEncoder(
        16, output_size=output_size, num_blocks=2, attention_heads=4, linear_units=48, subsampling_channels=4, **conf
    ).eval()
    for block in encoder.encoder.layers:  # zero biases would hide where they are added
        block.self_attn.bias_u.data.normal_()
        block.self_attn.bias_v.data.normal_()
    return encoder


class Stream:
    """A recording that is fed to a ChunkStep."""

    def __init__(self, step: ChunkStep, feats: torch.Tensor):
        self.step = step
        self.feats = feats  # (T, 16)
        self.state: EncoderState = step.open()
        self.frames: list[torch.Tensor] = []

    @property
    def done(self) -> bool:
        return self.step.frames_of(len(self.feats)) <= self.state.start

    def chunk(self) -> tuple[torch.Tensor, int | None]:
        """Features (8 chunk, 16) of the next chunk; the length where they reach the end."""
        first, last = self.step.features(self.state.start)
        feats = self.feats[max(first, 0) : last]
        feats = torch.nn.functional.pad(feats, (0, 0, 0, 8 * self.step.chunk - len(feats)))
        return feats, len(self.feats) if last > len(self.feats) else None


def advance(step: ChunkStep, streams: list[Stream]) -> None:
    """One step for all of these."""
    feats, ends = zip(*[stream.chunk() for stream in streams], strict=True)
    frames, states = step(torch.stack(feats), [stream.state for stream in streams], ends)
    for stream, new, state in zip(streams, frames, states, strict=True):
        stream.state = state
        stream.frames.append(new)


def run(step: ChunkStep, recordings: list[torch.Tensor], delays: list[int]) -> list[torch.Tensor]:
    """All recordings, stream i joining ``delays[i]`` steps after the first; (F_i, D) each."""
    streams = [Stream(step, feats) for feats in recordings]
    delays = delays[: len(streams)]
    for turn in range(10_000):
        active = [s for s, delay in zip(streams, delays, strict=True) if turn >= delay and not s.done]
        if not active:
            break
        advance(step, active)
    return [torch.cat(s.frames)[: step.frames_of(len(s.feats))] for s in streams]


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("subsampling", ["dw_striding", "conv1d"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_equals_the_masked_full_pass(context, subsampling, native):
    encoder = tiny(subsampling=subsampling)
    encoder.context = context
    lengths = [1100, 1, 8, 9, 104, 105, 106, 561, 560]  # one frame, part of a chunk, exact chunks, several windows
    recordings = [torch.randn(length, 16) for length in lengths]
    batch = torch.nn.utils.rnn.pad_sequence(recordings, batch_first=True)
    full, full_lengths, _ = encoder(batch, torch.tensor(lengths))
    step = encoder.chunk_step() if native else block_by_block(encoder.chunk_step())
    got = run(step, recordings, [0, 0, 1, 2, 0, 3, 0, 1, 2])
    for row, frames in enumerate(got):
        assert len(frames) == full_lengths[row]
        torch.testing.assert_close(frames, full[row, : len(frames)], rtol=0, atol=1e-5)


def test_streams_at_different_positions_give_what_they_give_alone():
    encoder = tiny()
    step = encoder.chunk_step((6, 1))
    recordings = [torch.randn(length, 16) for length in (200, 130, 77)]
    together = run(step, recordings, [0, 3, 5])
    for frames, feats in zip(together, recordings, strict=True):
        torch.testing.assert_close(frames, run(step, [feats], [0])[0], rtol=0, atol=1e-6)


def test_an_older_state_can_be_taken_up_again():
    step = tiny().chunk_step((6, 1))
    stream = Stream(step, torch.randn(200, 16))
    advance(step, [stream])
    kept = stream.state
    advance(step, [stream])
    again = Stream(step, stream.feats)
    again.state = kept
    advance(step, [again])
    assert torch.equal(again.frames[0], stream.frames[1])


def test_streams_part_and_meet_again():
    """Batches break up and form anew in every way; each stream gives what it gives alone."""
    step = tiny().chunk_step((6, 1))
    streams = [Stream(step, torch.randn(600, 16)) for _ in range(4)]
    for group in ([0, 1, 2, 3], [0, 1, 2, 3], [0, 1], [2, 3], [3, 2], [0, 2], [1], [1, 3, 0, 2], [1, 3, 0, 2], [2]):
        advance(step, [streams[number] for number in group])
    for stream in streams:
        alone = Stream(step, stream.feats)
        while alone.state.start < stream.state.start:
            advance(step, [alone])
        torch.testing.assert_close(torch.cat(stream.frames), torch.cat(alone.frames), rtol=0, atol=1e-6)


def test_two_continuations_of_one_state():
    """Memory is appended in place, but not where another continuation has been."""
    step = tiny().chunk_step((6, 1))
    stream = Stream(step, torch.randn(400, 16))
    advance(step, [stream])
    fork = Stream(step, torch.cat([stream.feats[:32], torch.randn(368, 16)]))
    fork.state = stream.state
    for _ in range(4):
        advance(step, [stream])
        advance(step, [fork])
    for each, skipped in ((stream, 0), (fork, 1)):
        alone = Stream(step, each.feats)
        for _ in range(5):
            advance(step, [alone])
        torch.testing.assert_close(torch.cat(each.frames), torch.cat(alone.frames[skipped:]), rtol=0, atol=1e-6)


def test_a_stream_has_memory_of_its_own():
    """Nothing that one remembers keeps another's alive, and one that has just begun remembers little."""
    step = tiny().chunk_step((70, 1))
    streams = [Stream(step, torch.randn(200, 16)) for _ in range(8)]
    advance(step, streams)
    for part in ("past", "convolved"):
        owned = [getattr(stream.state, part) for stream in streams]
        assert len({each.untyped_storage().data_ptr() for each in owned}) == len(streams)
        assert all(each.untyped_storage().nbytes() == each.nbytes for each in owned)
    assert len({stream.state.keys_values.frames.data_ptr() for stream in streams}) == len(streams)
    assert all(stream.state.keys_values.frames.shape[1] <= step.spare for stream in streams)


def test_without_biases():
    encoder = tiny(config={"attention_bias": False, "convolution_bias": False})
    encoder.context = (6, 1)
    feats = torch.randn(150, 16)
    full, _, _ = encoder(feats[None], torch.tensor([150]))
    torch.testing.assert_close(run(encoder.chunk_step(), [feats], [0])[0], full[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("native", [True, False])
def test_many_streams_at_once(native):
    """Enough of them for threads with streams of their own."""
    encoder = tiny()
    step = encoder.chunk_step((14, 6))
    step = step if native else block_by_block(step)
    recordings = [torch.randn(112, 16) for _ in range(147)]
    encoder.context = (14, 6)
    full, _, _ = encoder(torch.stack(recordings), torch.full((len(recordings),), 112))
    for frames, expected in zip(run(step, recordings, [0] * len(recordings)), full, strict=True):
        torch.testing.assert_close(frames, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    """Heads of 12 numbers fill no vector."""
    code = """
import torch
from tests.encoders.test_chunk_step import block_by_block, run, tiny
for context in ((70, 13), (6, 1), (0, 3), (5, 0)):
    recordings = [torch.randn(length, 16) for length in (130, 77, 8)]
    step = tiny(48).chunk_step(context)
    assert step.in_one_call
    found = run(step, recordings, [0, 1, 2])
    for a, b in zip(found, run(block_by_block(step), recordings, [0, 1, 2]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
"""
    run_with(isa, code)


def block_by_block(step: ChunkStep) -> ChunkStep:
    """The same step without the native call."""
    plain = copy.copy(step)
    plain._weights = None
    return plain


def test_what_the_native_call_does_not_take_goes_block_by_block():
    if ops.native is None:
        pytest.skip("the compiled ops were not built")
    assert not tiny(40).chunk_step((6, 1)).in_one_call  # panels have 16 outputs
    assert not tiny(config={"hidden_act": "relu"}).chunk_step((6, 1)).in_one_call
    assert tiny().chunk_step((6, 1)).in_one_call


@pytest.mark.parametrize("streams", [33, 64, 67])
def test_streams_shared_out_among_threads_do_not_mix(streams):
    """All at places of their own: some begin, some end in this chunk."""
    step = tiny().chunk_step((8, 3))
    recordings = [torch.randn(20 + 7 * number, 16) for number in range(streams)]
    delays = [number % 5 for number in range(streams)]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = run(step, recordings, delays)
    finally:
        torch.set_num_threads(threads)
    for number in (0, 15, 16, 32, streams - 1):
        torch.testing.assert_close(found[number], run(step, [recordings[number]], [0])[0], rtol=0, atol=1e-5)


def test_wrong_memory_is_an_error():
    if ops.native is None:
        pytest.skip("the compiled ops were not built")
    weights = tiny().chunk_step((6, 1))._weights

    def one(*shape):
        return [torch.zeros(*shape)]

    right = {
        "x": torch.randn(2, 32), "chunks": torch.tensor([2]), "weights": weights, "windows": one(2, 8, 64),
        "seen": torch.tensor([8]), "past": one(2, 8, 32), "after": one(2, 8, 32), "size": 8, "places": 24,
    }  # fmt: skip

    def call(**changed):
        return ops.native.conformer_chunk(**(right | changed), heads=4, eps=1e-5, scale=0.3)

    assert call().isfinite().all()
    assert call(windows=one(2, 2, 64), seen=torch.tensor([1])).isfinite().all()
    for wrong in (
        {"x": torch.randn(2, 31)}, {"x": torch.randn(3, 32)}, {"x": torch.randn(2, 32).double()},
        {"weights": weights[:-1]}, {"weights": [*weights, weights[0]]}, {"weights": [w.double() for w in weights]},
        {"windows": []}, {"windows": one(2, 1, 64)}, {"windows": one(2, 9, 64)}, {"windows": one(1, 8, 64)},
        {"windows": one(2, 8, 60)}, {"windows": [torch.zeros(2, 64, 8).mT]}, {"past": []}, {"past": one(2, 7, 32)},
        {"past": one(0, 8, 32), "after": one(0, 8, 32), "windows": one(0, 8, 64), "weights": []},
        {"past": one(1, 8, 32)}, {"past": [torch.zeros(2, 8, 32).double()]}, {"after": one(2, 8, 31)},
        {"after": one(2, 8, 32) * 2}, {"seen": torch.tensor([0])}, {"seen": torch.tensor([9])},
        {"seen": torch.tensor([8, 8])}, {"seen": torch.tensor([8], dtype=torch.int32)}, {"chunks": torch.tensor([1])},
        {"chunks": torch.tensor([3])}, {"chunks": torch.tensor([0])}, {"size": 7}, {"places": 23}, {"places": 25},
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call(**wrong)
