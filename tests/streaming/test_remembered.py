"""RememberingListener: what RecomputedListener hears, with every log-mel frame computed once."""

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_bestow.connectors import Speech
from espnet_bestow.encoders import ConvSubsampling
from espnet_bestow.encoders.features import Features
from espnet_bestow.streaming.features import LogMel
from espnet_bestow.streaming.listener import RecomputedListener
from espnet_bestow.streaming.policies import EVERYTHING
from espnet_bestow.streaming.remembered import RememberingListener

HOP = 1280


@pytest.fixture(scope="module")
def features():
    torch.manual_seed(0)
    frontend = DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=16)
    return Features(frontend, normalize=UtteranceMVN(norm_vars=True), preencoder=ConvSubsampling(16, 8)).eval()


@pytest.fixture(scope="module")
def listeners(features):
    """The one that remembers, and the one that does not."""

    @torch.no_grad()
    def whole(waveform, lengths):
        return Speech(*features(waveform, lengths)).rows()

    @torch.no_grad()
    def rest(feats, lengths):
        return Speech(*features.refine(feats, lengths)).rows()

    return RememberingListener(LogMel(features.frontend), rest, HOP, 3), RecomputedListener(whole, 16000, HOP, 3)


def pushed(listener, audio, ended=False):
    ear = listener.open()
    ear.push(audio)
    if ended:
        ear.end()
    return ear


def test_talks_that_grow_at_their_own_pace_are_heard_as_if_for_the_first_time(listeners):
    talks = [0.1 * torch.randn(samples) for samples in (24_000, 17_777, 9_001)]
    ears = [[listener.open() for _ in talks] for listener in listeners]
    shown = 0
    for begin in range(0, 30_000, 3_000):
        for number, talk in enumerate(talks):
            size = 3_000 + 100 * number
            piece = talk[begin // 3_000 * size :][:size]
            for ear in (ears[0][number], ears[1][number]):
                if not ear.ended:
                    ear.push(piece)
                    if ear.received == len(talk):
                        ear.end()
        asked = [EVERYTHING if ear.ended else max(ear.received // HOP - 3, 0) for ear in ears[0]]
        found, expected = (
            listener.hear(list(zip(own, asked, strict=True))) for listener, own in zip(listeners, ears, strict=True)
        )
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
            shown += len(one)
    assert shown > 100


def frames_computed(listener, monkeypatch) -> list[int]:
    """How many log-mel frames each coming call computes."""
    computed = []
    padded = listener.logmel.padded

    def counting(audio, first, last):
        computed.append(sum(last) - sum(first))
        return padded(audio, first, last)

    monkeypatch.setattr(listener.logmel, "padded", counting)
    return computed


def test_a_frame_that_has_been_heard_is_not_computed_again(listeners, monkeypatch):
    listener, _ = listeners
    ear = pushed(listener, 0.1 * torch.randn(20_000))
    listener.hear([(ear, 6)])
    computed = frames_computed(listener, monkeypatch)
    listener.hear([(ear, 8)])
    assert computed == [2 * HOP // 160 + 2]  # and those that see the silence behind what is encoded


def test_nor_is_it_for_several_beginnings(listeners, monkeypatch):
    ears = [pushed(listeners[0], 0.1 * torch.randn(length)) for length in (20_000, 12_000)]
    computed = frames_computed(listeners[0], monkeypatch)
    listeners[0].hear([(ear, frames) for ear in ears for frames in (2, 3, 4, 5)])
    assert computed and computed[0] <= 2 * (8 * HOP // 160 + 4 * 2)


@pytest.mark.parametrize("ended", [False, True])
def test_what_was_heard_before_changes_nothing(listeners, ended):
    audio = 0.1 * torch.randn(20_000)
    listener, _ = listeners
    ear = pushed(listener, audio, ended)
    late = listener.hear([(ear, 8)])[0]
    early = listener.hear([(ear, 2)])[0]
    torch.testing.assert_close(early, listener.hear([(pushed(listener, audio, ended), 2)])[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(listener.hear([(ear, 8)])[0], late, rtol=0, atol=1e-5)


def test_several_beginnings_of_one_talk_fit_in_one_call(listeners):
    audio = 0.1 * torch.randn(20_000)
    ear, other = (pushed(listener, audio) for listener in listeners)
    for asked in ([2, 4, 5], [7, 8]):
        found = listeners[0].hear([(ear, frames) for frames in asked])
        expected = listeners[1].hear([(other, frames) for frames in asked])
        for one, another in zip(found, expected, strict=True):
            torch.testing.assert_close(one, another, rtol=0, atol=1e-5)


def test_too_little_audio_has_no_frames(listeners):
    listener, _ = listeners
    assert len(listener.hear([(pushed(listener, torch.zeros(1_500), ended=True), EVERYTHING)])[0]) == 0


def test_other_frontends_are_told_apart(features):
    assert LogMel.suits(features.frontend)
    assert not LogMel.suits(torch.nn.Linear(1, 1)) and not LogMel.suits(None)
    with pytest.raises(ValueError, match="frontend Linear cannot stream"):
        LogMel(torch.nn.Linear(1, 1))
