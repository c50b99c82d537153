"""RememberingListener: what RecomputedListener hears, with what comes before the future computed once."""

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_bestow import ops
from espnet_bestow.connectors import Speech
from espnet_bestow.encoders import ConvSubsampling, RunningMVN
from espnet_bestow.encoders.causal_subsampling import CausalConv1dSubsampling, subsampled
from espnet_bestow.encoders.features import Features
from espnet_bestow.encoders.lengths import valid_frames
from espnet_bestow.encoders.log_mel import works_frame_by_frame
from espnet_bestow.streaming.features import LogMel, Span, StreamFeatures
from espnet_bestow.streaming.listener import Ear, RecomputedListener
from espnet_bestow.streaming.policies import EVERYTHING
from espnet_bestow.streaming.remembered import RememberingListener
from espnet_bestow.streaming.subsampled import Subsampled

HOP = 1280

needs_kernels = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")


def frontend() -> DefaultFrontend:
    return DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=16)


def log_mel_listeners() -> tuple[RememberingListener, RecomputedListener]:
    """Normalisation and sub-sampling look ahead: only log-mel can be remembered."""
    features = Features(frontend(), normalize=UtteranceMVN(norm_vars=True), preencoder=ConvSubsampling(16, 8)).eval()

    @torch.no_grad()
    def whole(waveform, lengths):
        return Speech(*features(waveform, lengths)).rows()

    @torch.no_grad()
    def rest(frames, counts, _):
        feats = torch.nn.utils.rnn.pad_sequence(frames.split(counts.tolist()), batch_first=True)
        return Speech(*features.refine(feats, counts)).rows()

    return RememberingListener(LogMel(features.frontend), rest, HOP, 3), RecomputedListener(whole, 16000, HOP, 3)


def subsampled_listeners(native: bool) -> tuple[RememberingListener, RecomputedListener]:
    """Sub-sampled frames can be."""
    features = Features(frontend(), normalize=RunningMVN()).eval()
    subsampling = CausalConv1dSubsampling(16, 16).eval()

    @torch.no_grad()
    def whole(waveform, lengths):
        feats, lengths = features(waveform, lengths)
        frames = subsampling(feats, valid_frames(lengths, feats.shape[1]))
        return [row[: subsampled(int(length))] for row, length in zip(frames, lengths, strict=True)]

    stages = subsampling.stages() if native else subsampling.plain_stages()
    front = Subsampled(StreamFeatures(features), stages, 16)
    listener = RememberingListener(front, lambda frames, counts, _: frames.split(counts.tolist()), HOP, 3)
    return listener, RecomputedListener(whole, 16000, HOP, 3)


@pytest.fixture(scope="module", params=["log-mel", "sub-sampled", "sub-sampled by PyTorch"])
def listeners(request):
    """The one that remembers, and the one that does not."""
    torch.manual_seed(0)
    return log_mel_listeners() if request.param == "log-mel" else subsampled_listeners(request.param == "sub-sampled")


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
    """How many frames of the front each coming call computes."""
    computed = []
    front = type(listener.front)
    call = front.__call__

    def counting(self, spans):
        computed.append(sum(span.last - span.first for span in spans))
        return call(self, spans)

    monkeypatch.setattr(front, "__call__", counting)
    return computed


def test_a_frame_that_has_been_heard_is_not_computed_again(listeners, monkeypatch):
    listener, _ = listeners
    ear = pushed(listener, 0.1 * torch.randn(40_000))
    listener.hear([(ear, 13)])
    computed = frames_computed(listener, monkeypatch)
    listener.hear([(ear, 17)])
    ends = [(frames + 3) * HOP for frames in (13, 17)]
    known = [listener.front.complete(end) for end in ends]
    # What is certain now, and what sees the silence behind what is encoded.
    assert computed == [known[1] - known[0], listener.front.all(ends[1]) - known[1]]
    assert computed[0] > 0 and computed[1] <= 4


def test_the_last_words_of_a_talk_are_computed_at_once(listeners, monkeypatch):
    """Nothing is asked for after them."""
    ear = pushed(listeners[0], 0.1 * torch.randn(20_000), ended=True)
    computed = frames_computed(listeners[0], monkeypatch)
    listeners[0].hear([(ear, EVERYTHING)])
    assert computed == [listeners[0].front.all(20_000)]


def test_several_beginnings_share_what_they_have_in_common(listeners, monkeypatch):
    ears = [pushed(listeners[0], 0.1 * torch.randn(length)) for length in (20_000, 12_000)]
    computed = frames_computed(listeners[0], monkeypatch)
    listeners[0].hear([(ear, frames) for ear in ears for frames in (2, 3, 4, 5)])
    front = listeners[0].front
    common = front.complete(5 * HOP)
    rest = sum(front.all(min(end * HOP, length)) - common for length in (20_000, 12_000) for end in (5, 6, 7, 8))
    assert computed == [2 * common, rest]


def test_frames_do_not_depend_on_what_was_asked_for_before():
    """Not even in how they are rounded: otherwise words could depend on how the audio was cut."""
    torch.manual_seed(0)
    listener, _ = subsampled_listeners(native=True)
    audio = 0.1 * torch.randn(60_000)
    ways = []
    for steps in ([30], [5, 30], [2, 3, 9, 17, 21, 29, 30], range(1, 31)):
        ear = pushed(listener, audio)
        for frames in steps:
            heard = listener.hear([(ear, frames), (ear, frames + 2)])
        ways.append(heard)
    for way in ways[1:]:
        for one, other in zip(way, ways[0], strict=True):
            assert torch.equal(one, other)


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


def test_other_frontends_are_told_apart():
    assert works_frame_by_frame(frontend())
    assert not works_frame_by_frame(torch.nn.Linear(1, 1)) and not works_frame_by_frame(None)
    with pytest.raises(ValueError, match="frontend Linear cannot stream"):
        LogMel(torch.nn.Linear(1, 1))


def subsampled_front() -> Subsampled:
    torch.manual_seed(0)
    features = Features(frontend(), normalize=RunningMVN()).eval()
    return Subsampled(StreamFeatures(features), CausalConv1dSubsampling(16, 16).eval().stages(), 16)


@needs_kernels
def test_features_and_subsampling_in_one_call_are_what_they_are_one_by_one():
    """To the last bit, with a past and without, before the end and behind it."""
    at_once, one_by_one = subsampled_front(), subsampled_front()
    assert at_once.at_once is not None
    one_by_one.at_once = None
    ears = [Ear() for _ in range(4)]
    for ear, samples in zip(ears, (16_000, 9_000, 20_001, 300), strict=True):
        ear.push(0.1 * torch.randn(samples).numpy())
    ears[2].end()
    pasts = [[front.open() for _ in ears] for front in (at_once, one_by_one)]
    for firsts, lasts, ends in (
        ((0, 0, 0, 0), (4, 4, 8, 0), (None, None, None, None)),
        ((4, 4, 8, 0), (8, 4, 16, 1), (None, None, None, 300)),
        ((8, 4, 16, 1), (12, 8, 17, 1), (15_000, 9_000, None, 300)),
    ):
        found = []
        for front, past in zip((at_once, one_by_one), pasts, strict=True):
            spans = [Span(*each) for each in zip(ears, firsts, lasts, past, ends, strict=True)]
            frames, past[:] = front(spans)
            found.append([row[: span.last - span.first] for row, span in zip(frames, spans, strict=True)])
        assert [len(row) for row in found[0]] == [last - first for first, last in zip(firsts, lasts, strict=True)]
        for one, other in zip(*found, strict=True):
            assert torch.equal(one, other)
        for one, other in zip(*pasts, strict=True):
            assert torch.equal(one.features, other.features) and torch.equal(one.stages, other.stages)
    assert at_once([])[0] == one_by_one([])[0] == []


@needs_kernels
def test_wrong_arguments_of_the_one_call_are_errors():
    front = subsampled_front()
    past = front.open()
    native = ops.native.subsampled_audio
    constants = [*front.at_once.log_mel.constants, *front.at_once.normalize.constants(16), *front.stages.constants]
    right = [[torch.randn(16_000)], torch.tensor([[0, 25, 0, 4, -1]]), past.features[None], past.stages[None], 4, 160]
    frames, *after = native(*right, *constants)
    assert frames.shape == (4, 16) and [each.shape for each in after] == [each.shape for each in right[2:4]]
    for place, wrong in (
        (0, [torch.randn(16_000).double()]), (0, []), (1, torch.tensor([[0, 25, 0, 4]])),
        (1, torch.tensor([[-1, 25, 0, 4, -1]])), (1, torch.tensor([[3, 2, 0, 4, -1]])),
        (1, torch.tensor([[0, 25, -1, 4, -1]])), (1, torch.tensor([[0, 25, 0, -4, -1]])),
        (2, right[2].float()), (2, right[2][:, :2]), (3, right[3][:, 1:]), (3, right[3].double()), (4, 0), (5, 0),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            native(*[wrong if number == place else each for number, each in enumerate(right)], *constants)
    torch.library.opcheck(torch.ops.bestow.subsampled_audio.default, (*right, *constants), test_utils=("test_schema",))
