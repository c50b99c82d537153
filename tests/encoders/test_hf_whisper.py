"""HFWhisperEncoder and its frontend give what transformers gives, without its 30 s of padding."""

import pytest
import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperModel,
)

from espnet_bestow.encoders import (
    FullWindowWhisperEncoder,
    HFWhisperEncoder,
    WhisperLogMelFrontend,
)

TINY = {"output_size": 16, "num_blocks": 2, "attention_heads": 2, "linear_units": 32}


def tiny(**conf) -> HFWhisperEncoder:
    torch.manual_seed(0)
    return HFWhisperEncoder(80, **{**TINY, **conf})


def whisper_config() -> WhisperConfig:
    return WhisperConfig(
        d_model=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        vocab_size=20,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )


@pytest.fixture
def checkpoint(tmp_path):
    """A tiny random Whisper on disk."""
    torch.manual_seed(1)
    model = WhisperForConditionalGeneration(whisper_config()).eval()
    # Fresh layer norms and biases are trivial, which would hide that they were not loaded.
    for parameter in model.model.encoder.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(tmp_path / "whisper")
    return tmp_path / "whisper", model.model.encoder


def noise(*seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise that swells, so that the loudest frame is well inside. (B, S), (B,)."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([int(16000 * s) for s in seconds])
    waves = torch.zeros(len(seconds), int(lengths.max()))
    for row, length in enumerate(lengths):
        envelope = torch.linspace(0, 3.14, int(length)).sin() ** 4
        waves[row, :length] = 0.3 * envelope * torch.randn(int(length), generator=generator)
    return waves, lengths


def their_features(wave: torch.Tensor, n_mels: int = 80) -> torch.Tensor:
    """(S,) -> (1, n_mels, 3000)."""
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    return extractor(wave.numpy(), sampling_rate=16000, return_tensors="pt").input_features


@pytest.mark.parametrize("n_mels", [80, 128])
def test_frontend_equals_feature_extractor(n_mels):
    waves, lengths = noise(1.0, 0.73, 0.5)
    features, frames = WhisperLogMelFrontend(n_mels)(waves, lengths)
    assert features.shape == (3, int(frames.max()), n_mels)
    for row, (length, count) in enumerate(zip(lengths, frames, strict=True)):
        theirs = their_features(waves[row, :length], n_mels)[0].T
        torch.testing.assert_close(features[row, :count], theirs[:count], rtol=1e-4, atol=1e-4)
        # All that we leave out is silence.
        assert theirs[count:].std() < 1e-6


def test_frontend_does_not_see_padding():
    waves, lengths = noise(0.6, 0.31)
    waves[1, lengths[1] :] = 9.0
    frontend = WhisperLogMelFrontend()
    features, frames = frontend(waves, lengths)
    alone, _ = frontend(waves[1:, : lengths[1]], lengths[1:])
    torch.testing.assert_close(features[1, : frames[1]], alone[0], rtol=1e-5, atol=1e-5)
    assert features[1, frames[1] :].abs().max() == 0


def test_frontend_fits_thirty_seconds_into_the_window():
    _, frames = WhisperLogMelFrontend()(torch.randn(2, 480000), torch.tensor([480000, 479900]))
    assert frames.tolist() == [3000, 3000]


def test_frontend_refuses_what_whisper_cannot_hear():
    with pytest.raises(ValueError, match="fs '8k'"):
        WhisperLogMelFrontend(fs="8k")
    with pytest.raises(ValueError, match="row 1 of the batch: 12 samples"):
        WhisperLogMelFrontend()(torch.randn(2, 800), torch.tensor([800, 12]))


@pytest.mark.parametrize("seconds", [0.8, 7.77, 29.9])
def test_full_window_equals_extractor_and_encoder(checkpoint, seconds):
    path, theirs = checkpoint
    waves, lengths = noise(seconds)
    encoder = FullWindowWhisperEncoder(80, pretrained=str(path)).eval()
    with torch.no_grad():
        ys, olens, _ = encoder(*WhisperLogMelFrontend()(waves, lengths))
        expected = theirs(their_features(waves[0])).last_hidden_state
    assert ys.shape[1] == olens[0]
    torch.testing.assert_close(ys, expected[:, : ys.shape[1]], rtol=1e-3, atol=1e-3)


def test_full_window_of_digital_silence(checkpoint):
    path, theirs = checkpoint
    encoder = FullWindowWhisperEncoder(80, pretrained=str(path)).eval()
    silence = torch.zeros(1, 9600)
    with torch.no_grad():
        ys, _, _ = encoder(*WhisperLogMelFrontend()(silence, torch.tensor([9600])))
        expected = theirs(their_features(silence[0])).last_hidden_state
    torch.testing.assert_close(ys, expected[:, : ys.shape[1]], rtol=1e-3, atol=1e-3)


def test_full_window_in_a_batch(checkpoint):
    path, _ = checkpoint
    encoder = FullWindowWhisperEncoder(80, pretrained=str(path)).eval()
    features, frames = WhisperLogMelFrontend()(*noise(1.0, 0.4))
    with torch.no_grad():
        ys, olens, _ = encoder(features, frames)
        alone, _, _ = encoder(features[1:, : frames[1]], frames[1:])
    torch.testing.assert_close(ys[1, : olens[1]], alone[0], rtol=1e-5, atol=1e-5)


def test_thirty_seconds_equal_transformers(checkpoint):
    path, theirs = checkpoint
    features = torch.randn(1, 3000, 80)
    encoder = HFWhisperEncoder(80, pretrained=str(path)).eval()
    with torch.no_grad():
        ys, olens, _ = encoder(features, torch.tensor([3000]))
        expected = theirs(features.transpose(1, 2)).last_hidden_state
    assert olens.tolist() == [1500]
    torch.testing.assert_close(ys, expected, rtol=1e-4, atol=1e-4)


def test_short_audio_equals_a_transformers_encoder_of_that_window(checkpoint):
    """The library computes any window length when its position table says so."""
    path, theirs = checkpoint
    features = torch.randn(2, 140, 80)
    encoder = HFWhisperEncoder(80, pretrained=str(path)).eval()
    theirs.config.max_source_positions = 70
    theirs.embed_positions = torch.nn.Embedding(70, 16, _weight=theirs.embed_positions.weight[:70])
    with torch.no_grad():
        ys, _, _ = encoder(features, torch.tensor([140, 140]))
        expected = theirs(features.transpose(1, 2)).last_hidden_state
    torch.testing.assert_close(ys, expected, rtol=1e-4, atol=1e-4)


def test_batch_gives_what_members_give_alone():
    encoder = tiny().eval()
    lengths = torch.tensor([100, 1, 37, 64])
    features = torch.randn(4, 120, 80) + 3.0
    ys, olens, _ = encoder(features, lengths)
    assert olens.tolist() == [50, 1, 19, 32]
    assert ys.shape[1] == 50
    for row, length in enumerate(lengths):
        alone, _, _ = encoder(features[row : row + 1, :length], length[None])
        torch.testing.assert_close(ys[row, : olens[row]], alone[0], rtol=1e-5, atol=1e-5)


def test_is_a_trainable_espnet_encoder():
    encoder = tiny(dropout_rate=0.1).train()
    assert isinstance(encoder, AbsEncoder)
    assert encoder.output_size() == 16
    ys, _, _ = encoder(torch.randn(2, 40, 80), torch.tensor([40, 30]))
    ys.square().sum().backward()
    without = [n for n, p in encoder.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_pretrained_bare_model(tmp_path):
    model = WhisperModel(whisper_config())
    model.save_pretrained(tmp_path)
    encoder = HFWhisperEncoder(80, pretrained=str(tmp_path))
    theirs = model.encoder.state_dict()
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, theirs[name]), name


def test_longer_than_the_window():
    message = r"row 1 of the batch: 31\.20 s \(3120 frames\) of audio; .* at most 30\.00 s \(3000 frames\)"
    with pytest.raises(ValueError, match=message):
        tiny()(torch.randn(2, 3120, 80), torch.tensor([20, 3120]))


@pytest.mark.parametrize(
    ("conf", "error", "message"),
    [
        ({"config": {"decoder_layers": 3}}, ValueError, r"\['decoder_layers'\].*known: \['activ"),
        ({"attention_heads": 3}, ValueError, "output_size 16 is not a multiple of attention_heads"),
        ({"pretrained": "./no/whisper"}, FileNotFoundError, r"\./no/whisper.*no such directory"),
    ],
)
def test_bad_config(conf, error, message):
    with pytest.raises(error, match=message):
        tiny(**conf)


def test_mel_bins_of_another_whisper(checkpoint):
    path, _ = checkpoint
    with pytest.raises(ValueError, match="num_mel_bins = 80, the config asks for 128"):
        HFWhisperEncoder(128, pretrained=str(path))
