"""ChunkedListener: ESPnet's contextual block encoder, fed by samples, gives what it gives for the whole recording."""

import pytest
import torch
from espnet2.asr.encoder.contextual_block_conformer_encoder import ContextualBlockConformerEncoder
from espnet2.asr.encoder.contextual_block_transformer_encoder import ContextualBlockTransformerEncoder
from espnet2.asr.frontend.default import DefaultFrontend

from espnet_bestow.encoders import RunningMVN, StreamingFastConformerEncoder
from espnet_bestow.encoders.features import Features
from espnet_bestow.streaming.contextual_block import ChunkedListener

BLOCKS = {"block_size": 8, "hop_size": 3, "look_ahead": 2}


class Model(torch.nn.Module):
    """What a listener needs of a BestowModel."""

    def __init__(self, encoder=ContextualBlockConformerEncoder, **conf):
        super().__init__()
        torch.manual_seed(0)
        self.features = Features(DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=16))
        self.features.normalize = RunningMVN()
        self.encoder = encoder(
            16, output_size=32, attention_heads=2, linear_units=48, num_blocks=2, **{**BLOCKS, **conf}
        )
        self.eval()

    @torch.no_grad()
    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """(S,) -> (F, D): the pass of training."""
        return self.encoder(*self.features(audio[None], torch.tensor([len(audio)])))[0][0]


def stream(listener: ChunkedListener, audio: torch.Tensor, push: int) -> torch.Tensor:
    ear, frames = listener.open(), 0
    for piece in audio.split(push):
        ear.push(piece)
        while listener.ready(ear, frames + 1):
            frames += 1
            assert len(listener.hear([(ear, frames)])[0]) == frames
    ear.end()
    return listener.hear([(ear, 10_000)])[0]


@pytest.mark.parametrize("encoder", [ContextualBlockConformerEncoder, ContextualBlockTransformerEncoder])
@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d6", "conv2d8"])
def test_equals_the_whole_pass_whatever_the_pushes(encoder, input_layer):
    model = Model(encoder, input_layer=input_layer)
    listener = ChunkedListener.of(model)
    for samples in (20_000, 13_600):
        audio = torch.randn(samples) * 0.1
        whole = model.encode(audio)
        for push in (400, 7000, samples):
            torch.testing.assert_close(stream(listener, audio, push), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("features", [*range(7, 14), *range(44, 70)])
def test_every_length(features):
    """All the ways in which a recording can end within a block."""
    model = Model(input_layer="conv2d")
    audio = torch.randn(160 * (features - 1) + 30) * 0.1
    whole = model.encode(audio)
    torch.testing.assert_close(stream(ChunkedListener.of(model), audio, 160), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("samples", [0, 1, 900])
def test_too_little_audio_has_no_frames(samples):
    assert stream(ChunkedListener.of(Model()), torch.randn(samples), 100).shape == (0, 32)


def test_sessions_do_not_mix():
    model = Model()
    listener = ChunkedListener.of(model)
    audios = [torch.randn(20_000) * 0.1, torch.randn(20_000) * 0.1]
    ears = [listener.open(), listener.open()]
    for position in range(0, 20_000, 5_000):
        for ear, audio in zip(ears, audios, strict=True):
            ear.push(audio[position : position + 5_000])
        frames = max(n for n in range(60) if ears[0].received >= listener.needed(n))
        listener.hear([(ear, frames) for ear in ears])
    for ear, audio in zip(ears, audios, strict=True):
        ear.end()
        torch.testing.assert_close(listener.hear([(ear, 1000)])[0], model.encode(audio), rtol=0, atol=1e-5)


def test_needed_is_what_the_next_block_waits_for():
    listener = ChunkedListener.of(Model(input_layer="conv2d"))
    assert listener.hop == 640
    assert listener.needed(0) == 0
    # 8 + 1 frames of 4 features, 2 held back; 3 frames are kept ahead of the first hop of 3.
    assert listener.needed(1) == listener.needed(6) == (4 * 11 - 1) * 160 + 200
    assert listener.needed(7) == (4 * 14 - 1) * 160 + 200
    ear = listener.open()
    ear.push(torch.zeros(5000))
    with pytest.raises(ValueError, match="1 frames need 7080 samples, 5000 have arrived"):
        listener.hear([(ear, 1)])


def test_what_comes_together_is_all_there_is():
    listener = ChunkedListener.of(Model(input_layer="conv2d"))
    assert [listener.chunks.whole(frames) for frames in (0, 1, 6, 7, 9, 10)] == [0, 6, 6, 9, 9, 12]
    ear = listener.open()
    ear.push(torch.randn(listener.needed(7)) * 0.1)
    assert len(listener.hear([(ear, 9)])[0]) == 9


def test_what_cannot_stream_is_named():
    with pytest.raises(ValueError, match="factor 1 cannot stream"):
        ChunkedListener.of(Model(input_layer="linear"))
    with pytest.raises(ValueError, match="block_size=0"):
        ChunkedListener.of(Model(block_size=0))
    model = Model()
    model.encoder = StreamingFastConformerEncoder(16, 32, 1, 4, 48, 4)
    with pytest.raises(ValueError, match="StreamingFastConformerEncoder has no chunk mode"):
        ChunkedListener.of(model)
