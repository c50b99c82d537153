"""Sessions of models with encoders of ESPnet, which are recomputed on beginnings of the audio."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.tasks.asr import encoder_choices

from espnet_bestow.connectors import CrossAttentionConnector
from espnet_bestow.encoders import HFWhisperEncoder, WhisperLogMelFrontend
from espnet_bestow.encoders.features import Features
from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.inference import DecodingOptions, Speech2Text
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.streaming.listener import samples_per_frame
from espnet_bestow.streaming.policies import build_policy
from espnet_bestow.visibility import OfflinePolicy
from tests.encoders.test_espnet_encoders import CONFS
from tests.llm_fixtures import write_llm
from tests.streaming_fixtures import FREE, PROMPT, plain, run, talk, template_of

ENCODERS: dict[str, Any] = {
    "conformer": CONFS["conformer"],
    "vgg_rnn": CONFS["vgg_rnn"],
    "e_branchformer": CONFS["e_branchformer"],
}
WHISPER = {"output_size": 16, "num_blocks": 1, "attention_heads": 2, "linear_units": 24}


def measured(features: Features, encoder: torch.nn.Module) -> int:
    model = ESPnetBestowModel(features, encoder, None, None, OfflinePolicy(), ctc_weight=1.0).eval()
    with torch.no_grad():
        return samples_per_frame(lambda *batch: model.encode(*batch).rows(), 16000)


@pytest.mark.parametrize(("input_layer", "factor"), [("conv2d", 4), ("conv2d6", 6), ("conv2d8", 8)])
@pytest.mark.parametrize("hop_length", [80, 128, 160, 200, 256])
def test_the_hop_is_measured_exactly(hop_length, input_layer, factor):
    """An error of 1 % would have used up the right context after 100 s."""
    encoder = encoder_choices.get_class("transformer")(16, **CONFS["transformer"] | {"input_layer": input_layer})
    features = Features(DefaultFrontend(fs=16000, n_fft=512, hop_length=hop_length, n_mels=16))
    assert measured(features, encoder) == hop_length * factor


@pytest.mark.parametrize("positions", [200, 1500])
def test_the_hop_of_an_encoder_with_a_window(positions):
    encoder = HFWhisperEncoder(80, **WHISPER, config={"max_source_positions": positions})
    assert measured(Features(WhisperLogMelFrontend()), encoder) == 320


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llm"))


def loud(llm, features: Features, encoder: torch.nn.Module) -> Speech2Text:
    """Whatever it hears changes what it says."""
    lm = CausalLM(str(llm))
    connector = CrossAttentionConnector(lm.width, 16, dim=16, num_heads=2)
    connector.text_out.weight.data *= 10.0
    connector.speech_in.weight.data *= 5.0
    model = ESPnetBestowModel(features, encoder, connector, lm, OfflinePolicy())
    return Speech2Text(model, template_of(llm), PROMPT, DecodingOptions(beam_size=1, max_tokens=8))


@pytest.fixture(params=ENCODERS)
def s2t(llm, request) -> Speech2Text:
    torch.manual_seed(1)
    frontend = DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=16)
    encoder = encoder_choices.get_class(request.param)(input_size=16, **ENCODERS[request.param])
    return loud(llm, Features(frontend, normalize=UtteranceMVN()), encoder)


@pytest.fixture(scope="module")
def whisper(llm) -> Speech2Text:
    """With a window of 4.02 s: 30 s would take long."""
    torch.manual_seed(1)
    encoder = HFWhisperEncoder(80, **WHISPER, config={"max_source_positions": 201})
    return loud(llm, Features(WhisperLogMelFrontend()), encoder)


def test_words_do_not_depend_on_how_the_audio_is_cut(s2t):
    listener, audio = s2t.listener(right_context=6), talk(1.2)
    cuts = [
        plain(run(s2t.stream(None, "wait_k", FREE, listener, k=2, step=2), audio, size)) for size in (1600, 7000, 19200)
    ]
    assert sum(len(tokens) for _, _, _, tokens, *_ in cuts[0]) > 4
    assert cuts[0] == cuts[1] == cuts[2]


def test_frames_do_not_depend_on_what_is_heard_with_them(s2t):
    listener = s2t.listener(right_context=6)
    ears = [listener.open(), listener.open()]
    for seed, ear in enumerate(ears):
        ear.push(talk(1.2, seed))
    requests = [(ears[row], frames) for row, frames in ((0, 6), (0, 8), (1, 20), (0, 10), (1, 3))]
    together = listener.hear(requests)
    for request, frames in zip(requests, together, strict=True):
        torch.testing.assert_close(frames, listener.hear([request])[0], rtol=0, atol=1e-5)


def test_answers_do_not_depend_on_the_batch(s2t):
    audios = [talk(seconds, seed) for seed, seconds in enumerate((0.5, 1.0, 0.8, 0.5, 1.2, 0.65))]
    alone = [s2t(audio) for audio in audios]
    together = s2t.batch(audios, [PROMPT] * len(audios))
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert [each.score for each in together] == pytest.approx([each.score for each in alone], abs=1e-4)


@pytest.mark.parametrize(("policy", "options"), [("wait_k", {"k": 10, "step": 5}), ("offline", {})])
def test_a_segment_fits_whispers_window(whisper, policy, options):
    """Its longest beginning is encoded with its look-ahead, and its end with all that is left."""
    listener, audio = whisper.listener(), talk(5.3)
    limits = replace(FREE, max_tokens=500, max_seconds=4.0)
    cuts = [plain(run(whisper.stream(None, policy, limits, listener, **options), audio, n)) for n in (1600, 90_000)]
    assert cuts[0] == cuts[1]
    assert cuts[0][-1][-1] > 0  # another segment
    with pytest.raises(ValueError, match=r"max_seconds=0.4 holds less than the 0.46 s that come before the first"):
        whisper.stream(None, "wait_k", replace(limits, max_seconds=0.4), listener, k=2, step=5)


def test_an_error_in_one_session_leaves_the_others_alone(whisper):
    listener, policy, limits = whisper.listener(), build_policy("wait_k", k=10, step=5), replace(FREE, max_tokens=99)
    lonely = plain(run(whisper.stream(None, policy, limits, listener), talk(1.5, 1), 8000))
    pool = whisper.pool(listener)
    long, short = (pool.open(PROMPT, policy, limits) for _ in range(2))
    long.feed(talk(5.0))
    words = short.push(talk(1.5, 1)[:8000])
    assert pool.sessions == [short]
    for _ in range(2):
        with pytest.raises(BadUtteranceError, match=r"^session after 5.00 s of audio: .* takes at most 4.02 s"):
            long.push(talk(0.1))
    with pytest.raises(BadUtteranceError, match=r"^session after 5.00 s"):
        long.take()
    long.close()
    words += [word for start in (8000, 16000) for word in short.push(talk(1.5, 1)[start : start + 8000])]
    assert plain(words + short.finish()) == lonely


def test_what_would_be_asked_for_next_is_no_error_yet(whisper):
    """Beginnings are encoded ahead, those that are too long as well."""
    listener = whisper.listener()
    (fits,) = [n for n in range(200) if listener.needed(n) <= 4.02 * 16000 < listener.needed(n + 1)]
    with whisper.stream(None, "wait_k", replace(FREE, max_tokens=1), listener, k=fits, step=1) as session:
        session.push(talk(5.0)[: listener.needed(fits + 1)])
        assert session.segments_done == 1
