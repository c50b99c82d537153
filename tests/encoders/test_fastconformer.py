"""FastConformerEncoder is transformers' ParakeetEncoder, made exact, loadable and trainable."""

import json

import pytest
import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from transformers import ParakeetCTCConfig, ParakeetEncoder, ParakeetEncoderConfig, ParakeetForCTC

from espnet_bestow.encoders import FastConformerEncoder

TINY = {
    "output_size": 32,
    "num_blocks": 2,
    "attention_heads": 4,
    "linear_units": 48,
    "subsampling_channels": 8,
}


def tiny(**conf) -> FastConformerEncoder:
    torch.manual_seed(0)
    return FastConformerEncoder(80, **{**TINY, **conf})


def shake_batch_norms(module: torch.nn.Module) -> None:
    """Statistics as after training; fresh ones (0, 1) would hide a norm that is not loaded."""
    for norm in module.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)


@pytest.fixture
def ctc_checkpoint(tmp_path):
    """A tiny random ParakeetForCTC on disk, with the layerdrop that converted checkpoints carry."""
    torch.manual_seed(1)
    encoder_config = ParakeetEncoderConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        subsampling_conv_channels=8,
        layerdrop=0.1,
    )
    config = ParakeetCTCConfig(vocab_size=11, pad_token_id=10, encoder_config=encoder_config)
    model = ParakeetForCTC(config).eval()
    shake_batch_norms(model)
    model.save_pretrained(tmp_path / "ctc")
    return tmp_path / "ctc", model


def test_is_an_espnet_encoder():
    encoder = tiny()
    assert isinstance(encoder, AbsEncoder)
    assert encoder.output_size() == 32
    assert encoder.encoder.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("heads", [1, 4])
def test_equals_transformers(heads):
    encoder = tiny(attention_heads=heads).eval()
    shake_batch_norms(encoder)
    theirs = ParakeetEncoder(encoder.encoder.config).eval()
    theirs.load_state_dict(encoder.encoder.state_dict())
    features = torch.randn(3, 90, 80)
    lengths = torch.tensor([90, 61, 33])
    mask = torch.arange(90) < lengths[:, None]
    features = features * mask[:, :, None]
    ys, olens, _ = encoder(features, lengths)
    expected = theirs(features, attention_mask=mask)
    assert olens.tolist() == expected.attention_mask.sum(-1).tolist()
    for row, length in enumerate(olens):
        torch.testing.assert_close(ys[row, :length], expected.last_hidden_state[row, :length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [4, 8])
def test_batch_gives_what_members_give_alone(factor):
    encoder = tiny(config={"subsampling_factor": factor}).eval()
    shake_batch_norms(encoder)
    lengths = torch.tensor([120, 1, 57, 64, 119])
    features = torch.randn(5, 140, 80) + 3.0  # padding is anything but zero
    ys, olens, _ = encoder(features, lengths)
    for row, length in enumerate(lengths):
        alone, alone_lens, _ = encoder(features[row : row + 1, :length], length[None])
        assert alone.shape[1] == alone_lens[0] == olens[row]
        torch.testing.assert_close(ys[row, : olens[row]], alone[0], rtol=1e-5, atol=1e-5)


def test_output_lengths_are_true():
    encoder = tiny().eval()
    lengths = torch.arange(1, 42)
    ys, olens, _ = encoder(torch.randn(41, 41, 80), lengths)
    assert olens.tolist() == [-(-int(length) // 8) for length in lengths]
    assert ys.shape[1] == olens.max()


def test_training_with_layer_norm_does_not_see_padding():
    encoder = tiny(conv_norm="layer_norm", dropout_rate=0.0).train()
    features, lengths = torch.randn(2, 100, 80), torch.tensor([100, 40])
    ys, olens, _ = encoder(features, lengths)
    alone, _, _ = encoder(features[1:, :40], lengths[1:])
    torch.testing.assert_close(ys[1, : olens[1]], alone[0], rtol=1e-5, atol=1e-5)


def test_same_input_same_output_in_training_without_dropout():
    """Layer drop, which the library turns on by default, would make the passes differ."""
    encoder = tiny(num_blocks=8, dropout_rate=0.0).train()
    features, lengths = torch.randn(2, 40, 80), torch.tensor([40, 40])
    first = encoder(features, lengths)[0]
    for _ in range(8):
        torch.testing.assert_close(encoder(features, lengths)[0], first)


def test_fresh_weights_let_the_signal_through():
    encoder = FastConformerEncoder(80, 144, 1, 4, 144, 32)
    hidden = encoder.encoder.subsampling(torch.randn(2, 160, 80))
    assert hidden.std(dim=1).mean() > 1e-3  # 2e-7 with the library's own initialisation


def test_every_weight_gets_a_gradient():
    encoder = tiny().train()
    ys, _, _ = encoder(torch.randn(2, 80, 80), torch.tensor([80, 60]))
    ys.square().sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_frozen_batch_norms_keep_their_statistics():
    encoder = tiny()
    for parameter in encoder.parameters():
        parameter.requires_grad = False
    encoder.train()
    before = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    encoder(torch.randn(2, 80, 80), torch.tensor([80, 60]))
    assert before
    for name, buffer in encoder.named_buffers():
        assert torch.equal(before[name], buffer), name


def test_pretrained_ctc_model(ctc_checkpoint):
    path, model = ctc_checkpoint
    encoder = FastConformerEncoder(80, pretrained=str(path)).eval()
    assert encoder.output_size() == 32
    assert encoder.encoder.config.layerdrop == 0.0
    features = torch.randn(1, 64, 80)
    expected = model.encoder(features, attention_mask=torch.ones(1, 64, dtype=torch.bool))
    ys, _, _ = encoder(features, torch.tensor([64]))
    torch.testing.assert_close(ys, expected.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_pretrained_bare_encoder_in_half_precision(ctc_checkpoint, tmp_path):
    _, model = ctc_checkpoint
    model.encoder.to(torch.bfloat16).save_pretrained(tmp_path / "encoder")
    encoder = FastConformerEncoder(80, pretrained=str(tmp_path / "encoder"), dropout_rate=0.3)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder.encoder.config.attention_dropout == 0.3
    theirs = model.encoder.state_dict()
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, theirs[name].to(value.dtype)), name


def test_state_dict_round_trip():
    first, second = tiny(), FastConformerEncoder(80, **TINY)
    second.load_state_dict(first.state_dict())
    features, lengths = torch.randn(1, 40, 80), torch.tensor([40])
    torch.testing.assert_close(first.eval()(features, lengths)[0], second.eval()(features, lengths)[0])


@pytest.mark.parametrize("missing", ["./no/such/model", "/no/such/model", "exp/asr/no_model"])
def test_missing_directory(missing):
    with pytest.raises(FileNotFoundError, match=f"{missing}.*no such directory"):
        FastConformerEncoder(80, pretrained=missing)


def test_directory_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        FastConformerEncoder(80, pretrained=str(tmp_path))


def test_directory_without_weights(ctc_checkpoint):
    path, _ = ctc_checkpoint
    (path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="weights cannot be read"):
        FastConformerEncoder(80, pretrained=str(path))


def test_checkpoint_with_another_number_of_blocks(ctc_checkpoint):
    path, _ = ctc_checkpoint
    config = json.loads((path / "config.json").read_text())
    config["encoder_config"]["num_hidden_layers"] = 3
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks \d+ weights.*'layers\.2\."):
        FastConformerEncoder(80, pretrained=str(path))


def test_other_model_family(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(ValueError, match="'gpt2' model without a Parakeet encoder"):
        FastConformerEncoder(80, pretrained=str(tmp_path))


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"config": {"kernel": 9}}, r"unknown key\(s\) \['kernel'\].*conv_kernel_size"),
        ({"config": {"layerdrop": 0.1}}, r"unknown key\(s\) \['layerdrop'\]"),
        ({"conv_norm": "group_norm"}, "'group_norm'; known: batch_norm, layer_norm"),
        ({"attention_heads": 5}, "output_size 32 is not a multiple of attention_heads 5"),
    ],
)
def test_bad_config(conf, message):
    with pytest.raises(ValueError, match=message):
        tiny(**conf)


def test_input_size_that_does_not_subsample():
    with pytest.raises(ValueError, match="input_size 83 is not a multiple of subsampling_factor 8"):
        FastConformerEncoder(83, **TINY)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"output_size": 64}, "hidden_size = 32, the config asks for 64"),
        ({"config": {"conv_kernel_size": 5}}, "conv_kernel_size = 9, the config asks for 5"),
        ({"conv_norm": "layer_norm"}, "does not fit pretrained"),
    ],
)
def test_config_against_checkpoint(ctc_checkpoint, conf, message):
    path, _ = ctc_checkpoint
    with pytest.raises(ValueError, match=message):
        FastConformerEncoder(80, pretrained=str(path), **conf)


def test_row_without_frames():
    with pytest.raises(ValueError, match="row 1 of the batch: 0 feature frames"):
        tiny()(torch.randn(2, 16, 80), torch.tensor([16, 0]))


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        ({}, 108_762_112),
        ({"attention_bias": False, "convolution_bias": False}, 108_605_440),
    ],
)
def test_fastconformer_large_has_108_76_million_parameters(config, parameters):
    with torch.device("meta"):
        encoder = FastConformerEncoder(80, config=config)
    assert sum(p.numel() for p in encoder.parameters()) == parameters
