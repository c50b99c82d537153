"""A batch gives what its members give alone, whatever ESPnet's parts do with padding."""

import pytest
import torch
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.asr.postencoder.length_adaptor_postencoder import LengthAdaptorPostEncoder
from espnet2.layers.utterance_mvn import UtteranceMVN
from espnet2.tasks.asr import encoder_choices
from torch import nn

from espnet_bestow.encoders import (
    ConvSubsampling,
    FastConformerEncoder,
    HFWhisperEncoder,
    StreamingFastConformerEncoder,
)
from espnet_bestow.encoders.chain import EncoderChain
from espnet_bestow.encoders.features import Features
from espnet_bestow.encoders.padding import ignores_padding
from espnet_bestow.errors import BadRowError, BadUtteranceError, rows_named
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.visibility import OfflinePolicy
from tests.encoders.test_espnet_encoders import CONFS, TRANSFORMER

SAMPLES = [5000, 8000, 6600, 5000]
SMALL = {"output_size": 16, "num_blocks": 1, "attention_heads": 2, "linear_units": 24}
OURS = {
    "fastconformer": (FastConformerEncoder, {**SMALL, "subsampling_channels": 4}),
    "streaming_fastconformer": (StreamingFastConformerEncoder, {**SMALL, "subsampling_channels": 4}),
    "hf_whisper": (HFWhisperEncoder, SMALL),
}
MORE = {
    "rnn": {"hidden_size": 16, "output_size": 16, "num_layers": 1},
    "conformer conv2d1": {**TRANSFORMER, "cnn_module_kernel": 7, "input_layer": "conv2d1"},
    "multiconv_conformer": {**TRANSFORMER, "cgmlp_linear_units": 32, "multicgmlp_kernel_sizes": "3,5"},
    "contextual_block_transformer": {**TRANSFORMER, "block_size": 16, "hop_size": 8, "look_ahead": 4},
    "transformer conv1d": {**TRANSFORMER, "positionwise_layer_type": "conv1d", "positionwise_conv_kernel_size": 3},
}
ESPNET = {**CONFS, **MORE}


def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name in OURS:
        cls, conf = OURS[name]
        return cls(16, **conf).eval()
    return encoder_choices.get_class(name.split()[0])(input_size=16, **ESPNET[name]).eval()


def model(part: nn.Module, **features: nn.Module) -> ESPnetBestowModel:
    frontend = DefaultFrontend(fs=16000, n_fft=512, win_length=400, hop_length=160, n_mels=16)
    chain = Features(frontend, normalize=UtteranceMVN(), **features)
    return ESPnetBestowModel(chain, part, None, None, OfflinePolicy(), ctc_weight=1.0).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    lengths = torch.tensor(SAMPLES)
    return 0.1 * torch.randn(len(SAMPLES), max(SAMPLES)) * (torch.arange(max(SAMPLES)) < lengths[:, None]), lengths


def calls_of(part: nn.Module) -> list[int]:
    """Will hold how many rows each call of it has."""
    calls: list[int] = []
    part.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    return calls


@torch.no_grad()
@pytest.mark.parametrize("name", [*ESPNET, *OURS])
def test_a_batch_gives_what_its_members_give_alone(name):
    bestow = model(encoder(name))
    waveform, lengths = batch()
    feats, counts = bestow.features.extract(waveform, lengths)
    together, extracted = bestow.encode(waveform, lengths).rows(), bestow.encode_extracted(feats, counts).rows()
    for row, size in enumerate(SAMPLES):
        (alone,) = bestow.encode(waveform[row : row + 1, :size], lengths[row : row + 1]).rows()
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(extracted[row], alone, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer", "branchformer", "e_branchformer", *OURS])
def test_who_ignores_padding_takes_a_batch_at_once(name):
    part = encoder(name)
    calls = calls_of(part)
    model(part, preencoder=ConvSubsampling(16, 16, num_layers=1)).encode(*batch())
    assert calls == [4]


@torch.no_grad()
def test_others_take_rows_of_the_same_length_together():
    part = encoder("conformer")
    calls = calls_of(part)
    bestow = model(part)
    bestow.encode(*batch())
    assert calls == [2, 1, 1]
    bestow.train().encode(*batch())  # as ESPnet trains it
    assert calls == [2, 1, 1, 4]


@torch.no_grad()
@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "linear"])
@pytest.mark.parametrize("name", ["transformer", "branchformer", "e_branchformer"])
def test_encoders_of_espnet_that_ignore_padding(name, input_layer):
    """The claim itself, with something loud behind the rows."""
    torch.manual_seed(0)
    conf = {**CONFS[name], "num_blocks": 2, "input_layer": input_layer}
    part = encoder_choices.get_class(name)(input_size=16, **conf).eval()
    assert ignores_padding(part)
    x = torch.randn(9, 40, 16)
    lengths = torch.tensor([40, *range(25, 33)])
    frames, counts, _ = part(x + 3.0 * (torch.arange(40) >= lengths[:, None])[..., None], lengths)
    for row, size in enumerate(lengths.tolist()):
        alone, count, _ = part(x[row : row + 1, :size], lengths[row : row + 1])
        assert counts[row] == count[0]
        torch.testing.assert_close(frames[row, : int(count[0])], alone[0], rtol=0, atol=1e-5)


def test_who_is_not_known_is_not_trusted():
    assert not ignores_padding(nn.Linear(2, 2))
    assert not ignores_padding(encoder("transformer conv1d"))
    adaptor = LengthAdaptorPostEncoder(16, length_adaptor_n_layers=1)
    assert not ignores_padding(EncoderChain(encoder("transformer"), adaptor))
    assert not ignores_padding(Features(nn.Linear(2, 2)))  # type: ignore[arg-type]


def test_an_error_about_a_row_names_it():
    bestow = model(encoder("conformer"))
    waveform, lengths = batch()
    lengths[2] = 800
    with pytest.raises(BadRowError, match=r"^row 2 of the batch: 6 frames are too few for .*ConformerEncoder"):
        bestow.encode(waveform, lengths)
    with pytest.raises(BadUtteranceError, match=r"^utterance 'c': 6 frames"), rows_named("abcd"):
        bestow.encode(waveform, lengths)
    with pytest.raises(BadRowError, match=r"^row 0 of the batch: 6 frames are too few"):
        bestow.train().encode(waveform, lengths.fill_(800))
