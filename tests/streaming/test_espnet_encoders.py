"""Sessions of models with encoders of ESPnet, which are recomputed on beginnings of the audio."""

from typing import Any

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.tasks.asr import encoder_choices

from espnet_bestow.connectors import CrossAttentionConnector
from espnet_bestow.encoders import HFWhisperEncoder, WhisperLogMelFrontend
from espnet_bestow.encoders.features import Features
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.inference import DecodingOptions, Speech2Text
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.streaming.listener import samples_per_frame
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


@pytest.fixture(params=ENCODERS)
def s2t(llm, request) -> Speech2Text:
    """Whatever it hears changes what it says."""
    torch.manual_seed(1)
    frontend = DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=16)
    encoder = encoder_choices.get_class(request.param)(input_size=16, **ENCODERS[request.param])
    lm = CausalLM(str(llm))
    connector = CrossAttentionConnector(lm.width, 16, dim=16, num_heads=2)
    connector.text_out.weight.data *= 10.0
    connector.speech_in.weight.data *= 5.0
    model = ESPnetBestowModel(Features(frontend, normalize=UtteranceMVN()), encoder, connector, lm, OfflinePolicy())
    return Speech2Text(model, template_of(llm), PROMPT, DecodingOptions(beam_size=1, max_tokens=8))


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
