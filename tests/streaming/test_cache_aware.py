"""CacheAwareListener: samples in, exactly the frames of the whole recording out, however the samples were cut."""

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_bestow.encoders import ConvSubsampling, FastConformerEncoder, RunningMVN, StreamingFastConformerEncoder
from espnet_bestow.encoders.features import Features
from espnet_bestow.encoders.log_mel import NativeLogMel
from espnet_bestow.streaming.cache_aware import CacheAwareListener
from espnet_bestow.streaming.features import Span, StreamFeatures
from espnet_bestow.streaming.listener import Ear

CONTEXTS = [(70, 13), (70, 6), (70, 1), (70, 0)]


class Model(torch.nn.Module):
    """What a listener needs of a BestowModel."""

    def __init__(self, normalize=None, **conf):
        super().__init__()
        torch.manual_seed(0)
        self.features = Features(DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=16))
        self.features.normalize = normalize
        self.encoder = StreamingFastConformerEncoder(
            16, output_size=32, num_blocks=2, attention_heads=4, linear_units=48, subsampling_channels=4, **conf
        )
        self.eval()

    @torch.no_grad()
    def encode(self, audio: torch.Tensor) -> torch.Tensor:
        """(S,) -> (F, D)."""
        return self.encoder(*self.features(audio[None], torch.tensor([len(audio)])))[0][0]


def global_mvn(tmp_path) -> GlobalMVN:
    import numpy as np

    stats = {"count": 10, "sum": np.linspace(-80, -40, 16), "sum_square": np.full(16, 900.0)}
    np.savez(tmp_path / "stats.npz", **stats)
    return GlobalMVN(tmp_path / "stats.npz")


def stream(listener: CacheAwareListener, audio: torch.Tensor, pushes: list[int]) -> torch.Tensor:
    """Pushes the audio in pieces and hears whatever is ready after each."""
    ear, frames = listener.open(), 0
    for piece in audio.split(pushes):
        ear.push(piece)
        while listener.ready(ear, frames + 1):
            frames += 1
            assert len(listener.hear([(ear, frames)])[0]) == frames
    ear.end()
    return listener.hear([(ear, 10_000)])[0]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("samples", [30_000, 1280 * 14, 8000, 3200, 1280, 100, 1])  # some end in the first chunk
def test_equals_the_whole_pass(context, samples):
    model = Model(RunningMVN(), subsampling="conv1d")
    model.encoder.context = context
    audio = torch.randn(samples) * 0.1
    pieces = [999] * (samples // 999) + [samples % 999]
    got = stream(CacheAwareListener.of(model), audio, pieces)
    torch.testing.assert_close(got, model.encode(audio), rtol=0, atol=1e-5)


def test_global_mvn_and_none_stream_too(tmp_path):
    audio = torch.randn(20_000) * 0.1
    for normalize in (global_mvn(tmp_path), None):
        model = Model(normalize, contexts=[[6, 1]])
        got = stream(CacheAwareListener.of(model), audio, [160] * 125)
        torch.testing.assert_close(got, model.encode(audio), rtol=0, atol=1e-5)


def test_the_cut_of_the_pushes_changes_nothing():
    listener = CacheAwareListener.of(Model(RunningMVN()), (70, 1))
    audio = torch.randn(48_000) * 0.1
    first = stream(listener, audio, [48_000])
    for push in (160, 1280, 27_200):
        pieces = [push] * (48_000 // push) + [48_000 % push]
        torch.testing.assert_close(stream(listener, audio, pieces), first, rtol=0, atol=1e-6)


def test_sessions_heard_together_give_what_they_give_alone():
    model = Model(RunningMVN())
    listener = CacheAwareListener.of(model, (6, 1))
    audios = [torch.randn(n) * 0.1 for n in (30_000, 9_000, 17_000)]
    ears = [listener.open() for _ in audios]
    for position in range(0, 30_000, 4_000):
        for number, (ear, audio) in enumerate(zip(ears, audios, strict=True)):
            behind = position - 4_000 * number  # each session is 0.25 s behind the one before
            if behind >= 0 and not ear.ended:
                ear.push(audio[behind : behind + 4_000])
                if behind + 4_000 >= len(audio):
                    ear.end()
        ready = [(ear, max(n for n in range(30) if ear.received >= listener.needed(n))) for ear in ears]
        listener.hear(ready)
    for ear in ears:
        ear.ended or ear.end()
    for ear, audio in zip(ears, audios, strict=True):
        heard = listener.hear([(ear, 1000)])[0]
        model.encoder.context = (6, 1)
        torch.testing.assert_close(heard, model.encode(audio[: ear.received]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_needed_is_exactly_what_frames_depend_on(context):
    listener = CacheAwareListener.of(Model(RunningMVN(), subsampling="conv1d"), context)
    chunk = context[1] + 1
    assert listener.hop == 1280
    assert listener.needed(0) == 0
    assert listener.needed(1) == listener.needed(chunk) == (chunk - 1) * 1280 + 200
    assert listener.needed(chunk + 1) == (2 * chunk - 1) * 1280 + 200
    audio = torch.randn(listener.needed(chunk) + 3000) * 0.1
    changed = audio.clone()
    changed[listener.needed(chunk) :] += 1.0
    earlier = audio.clone()
    earlier[listener.needed(chunk) - 20 :] += 1.0
    frames = []
    for each in (audio, changed, earlier):
        ear = listener.open()
        ear.push(each)
        frames.append(listener.hear([(ear, chunk)])[0])
    assert torch.equal(frames[0], frames[1])
    assert not torch.equal(frames[0], frames[2])


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_comes_together_is_all_there_is(context):
    listener = CacheAwareListener.of(Model(RunningMVN(), subsampling="conv1d"), context)
    assert listener.chunks.whole(0) == 0
    for frames in (1, context[1] + 1, context[1] + 2, 20):
        there = listener.chunks.whole(frames)
        assert listener.needed(there) == listener.needed(frames) < listener.needed(there + 1)
        ear = listener.open()
        ear.push(torch.randn(listener.needed(frames)) * 0.1)
        assert len(listener.hear([(ear, there)])[0]) == there


def test_asking_too_early_is_an_error():
    listener = CacheAwareListener.of(Model(RunningMVN()), (6, 1))
    ear = listener.open()
    ear.push(torch.zeros(1000))
    with pytest.raises(ValueError, match="2 frames need 1480 samples, 1000 have arrived"):
        listener.hear([(ear, 2)])


def test_no_audio_has_no_frames():
    listener = CacheAwareListener.of(Model(RunningMVN()), (6, 1))
    ear = listener.open()
    ear.end()
    assert listener.hear([(ear, 5)])[0].shape == (0, 32)


@pytest.mark.parametrize("how", ["native", "python"])
def test_features_equal_those_of_the_whole(how, monkeypatch):
    """Raw log-mel, frame by frame: no edge of a piece is in it."""
    if how == "python":
        monkeypatch.setattr(NativeLogMel, "fits", lambda frontend: False)
    features = Model().features
    audio = torch.linspace(-1, 1, 5000) ** 3 + 0.01 * torch.randn(5000)
    whole, _ = features(audio[None], torch.tensor([5000]))
    ear = Ear()
    streamed = StreamFeatures(features)
    ear.push(audio)
    assert streamed.available(ear) == 31
    ear.end()
    assert streamed.available(ear) == 32
    for first in range(32):
        got, _ = streamed([Span(ear, first, first + 1, None), Span(ear, 0, 32, None)])
        torch.testing.assert_close(got[0, :1], whole[0, first : first + 1], rtol=0, atol=1e-4)
        assert not got[0, 1:].any()
        torch.testing.assert_close(got[1], whole[0], rtol=0, atol=1e-4)


def test_what_cannot_stream_is_named():
    model = Model(UtteranceMVN())
    with pytest.raises(ValueError, match="UtteranceMVN needs the whole recording"):
        CacheAwareListener.of(model)
    model = Model()
    model.features.preencoder = ConvSubsampling(16, 16)
    with pytest.raises(ValueError, match="ConvSubsampling cannot stream"):
        CacheAwareListener.of(model)
    model = Model()
    model.encoder = FastConformerEncoder(16, 32, 1, 4, 48, 4)
    with pytest.raises(ValueError, match="FastConformerEncoder is not cache-aware"):
        CacheAwareListener.of(model)
