"""StreamingFastConformerEncoder is transformers' cache-aware FastConformer, trainable and with true contexts."""

import pytest
import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from transformers import (
    NemotronAsrStreamingConfig,
    NemotronAsrStreamingEncoder,
    NemotronAsrStreamingEncoderConfig,
    NemotronAsrStreamingForRNNT,
)

from espnet_bestow.encoders import StreamingFastConformerEncoder
from espnet_bestow.visibility import Chunks

TINY = {
    "output_size": 32,
    "num_blocks": 2,
    "attention_heads": 4,
    "linear_units": 48,
    "subsampling_channels": 8,
    "dropout_rate": 0.0,
}
CONTEXTS = [(70, 13), (70, 6), (70, 1), (70, 0)]


def tiny(**conf) -> StreamingFastConformerEncoder:
    torch.manual_seed(0)
    return StreamingFastConformerEncoder(80, **{**TINY, **conf})


def test_is_an_espnet_encoder():
    encoder = tiny()
    assert isinstance(encoder, AbsEncoder)
    assert encoder.output_size() == 32
    assert encoder.contexts == CONTEXTS
    assert encoder.context == (70, 13)


@pytest.mark.parametrize("context", CONTEXTS)
def test_equals_transformers(context):
    encoder = tiny().eval()
    encoder.context = context
    theirs = NemotronAsrStreamingEncoder(encoder.encoder.config).eval()
    theirs.load_state_dict(encoder.encoder.state_dict())
    lengths = torch.tensor([900, 233, 64])
    mask = torch.arange(900) < lengths[:, None]
    features = torch.randn(3, 900, 80) * mask[:, :, None]
    ys, olens, _ = encoder(features, lengths)
    expected = theirs(features, attention_mask=mask, num_lookahead_tokens=context[1])
    assert olens.tolist() == expected.attention_mask.sum(-1).tolist()
    for row, length in enumerate(olens):
        torch.testing.assert_close(ys[row, :length], expected.last_hidden_state[row, :length], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("subsampling", ["dw_striding", "conv1d"])
def test_batch_gives_what_members_give_alone(subsampling):
    encoder = tiny(subsampling=subsampling, contexts=[[8, 3]]).eval()
    lengths = torch.tensor([320, 1, 57, 64, 65])
    features = torch.randn(5, 330, 80) + 3.0  # padding is anything but zero
    ys, olens, _ = encoder(features, lengths)
    for row, length in enumerate(lengths):
        alone, alone_lens, _ = encoder(features[row : row + 1, :length], length[None])
        assert alone.shape[1] == alone_lens[0] == olens[row]
        torch.testing.assert_close(ys[row, : olens[row]], alone[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("subsampling", ["dw_striding", "conv1d"])
@pytest.mark.parametrize("context", [(4, 3), (6, 2), (3, 0), (0, 1)])
def test_frames_see_their_own_chunk_and_no_later_one(subsampling, context):
    encoder = tiny(subsampling=subsampling, contexts=[context]).eval()
    chunk = context[1] + 1
    features = torch.randn(1, 8 * 4 * chunk + 1, 80)
    first = encoder(features, torch.tensor([features.shape[1]]))[0]
    for boundary in range(chunk, first.shape[1], chunk):
        changed = features.clone()
        changed[:, 8 * (boundary - 1) + 1 :] += 1.0  # the last frame of a chunk has seen 8 (boundary - 1)
        second = encoder(changed, torch.tensor([features.shape[1]]))[0]
        torch.testing.assert_close(first[:, :boundary], second[:, :boundary], rtol=0, atol=1e-6)
        assert (first[:, boundary:] - second[:, boundary:]).abs().max() > 1e-3


def test_the_left_context_ends():
    encoder = tiny(contexts=[(2, 0)], num_blocks=1, config={"conv_kernel_size": 1}).eval()
    features = torch.randn(1, 161, 80)
    changed = features.clone()
    changed[:, :8] += 1.0  # reaches frames 0, 1 and 2 through the sub-sampling
    first, second = (encoder(each, torch.tensor([161]))[0][0] for each in (features, changed))
    assert (first - second).abs().amax(-1)[:5].min() > 1e-5
    torch.testing.assert_close(first[5:], second[5:], rtol=0, atol=0)


@torch.no_grad()
def test_the_whole_context_is_one_chunk_of_everything():
    encoder = tiny(contexts=["whole", [8, 3]]).eval()
    features, lengths = torch.randn(2, 330, 80), torch.tensor([330, 200])
    whole = encoder(features, lengths)[0]
    assert encoder.context == "whole" and encoder.chunks == Chunks()
    encoder.context = (0, 49)  # 42 frames
    torch.testing.assert_close(whole, encoder(features, lengths)[0], rtol=0, atol=0)
    encoder.context = (8, 3)
    assert encoder.chunks == Chunks(4)
    assert (whole - encoder(features, lengths)[0])[0].abs().max() > 1e-3
    encoder.context = "whole"
    with pytest.raises(ValueError, match="context whole has no chunks"):
        encoder.chunk_step()
    assert encoder.chunk_step([8, 3]).chunk == 4


def test_training_draws_all_contexts():
    encoder = tiny(contexts=[[8, 3], [8, 1]]).train()
    features, lengths = torch.randn(1, 80, 80), torch.tensor([80])
    drawn = {float(encoder(features, lengths)[0].detach()[0, 0, 0]) for _ in range(20)}
    assert len(drawn) == 2


@pytest.mark.parametrize("subsampling", ["dw_striding", "conv1d"])
def test_every_weight_gets_a_finite_gradient(subsampling):
    encoder = tiny(subsampling=subsampling).train()
    ys, olens, _ = encoder(torch.randn(2, 900, 80), torch.tensor([900, 60]))  # padding far beyond the left context
    sum(ys[row, :length].square().sum() for row, length in enumerate(olens)).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("subsampling", ["dw_striding", "conv1d"])
def test_fresh_weights_let_the_signal_through(subsampling):
    encoder = tiny(subsampling=subsampling)
    hidden = encoder.encoder.subsampling(torch.randn(2, 160, 80), torch.ones(2, 160, dtype=torch.bool))
    assert hidden.std(dim=1).mean() > 1e-3  # 3e-8 in dw_striding with the library's own weights


def test_state_dict_round_trip():
    first, second = tiny(subsampling="conv1d"), StreamingFastConformerEncoder(80, **TINY, subsampling="conv1d")
    second.load_state_dict(first.state_dict())
    features, lengths = torch.randn(1, 40, 80), torch.tensor([40])
    torch.testing.assert_close(first.eval()(features, lengths)[0], second.eval()(features, lengths)[0])


def test_pretrained_model(tmp_path):
    torch.manual_seed(1)
    encoder_config = NemotronAsrStreamingEncoderConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        subsampling_conv_channels=8,
        sliding_window=29,
    )
    config = NemotronAsrStreamingConfig(
        vocab_size=12, blank_token_id=11, decoder_hidden_size=8, num_decoder_layers=1, encoder_config=encoder_config
    )
    model = NemotronAsrStreamingForRNNT(config).eval()
    model.save_pretrained(tmp_path / "rnnt")
    encoder = StreamingFastConformerEncoder(80, pretrained=str(tmp_path / "rnnt")).eval()
    assert encoder.contexts == [(28, 13), (28, 6), (28, 1), (28, 0)]
    assert encoder.encoder.config.layerdrop == 0.0
    features = torch.randn(1, 400, 80)
    expected = model.encoder(features, num_lookahead_tokens=13)
    ys, _, _ = encoder(features, torch.tensor([400]))
    torch.testing.assert_close(ys, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="conv1d does not fit pretrained"):
        StreamingFastConformerEncoder(80, pretrained=str(tmp_path / "rnnt"), subsampling="conv1d")


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"config": {"kernel": 9}}, r"unknown key\(s\) \['kernel'\].*conv_kernel_size"),
        ({"config": {"layerdrop": 0.1}}, r"unknown key\(s\) \['layerdrop'\]"),
        ({"subsampling": "vgg"}, "'vgg'; known: dw_striding, conv1d"),
        ({"attention_heads": 5}, "output_size 32 is not a multiple of attention_heads 5"),
        ({"contexts": [[70, 13], [70, 2]]}, r"context \[70, 2\] is neither whole nor"),
        ({"contexts": [[70]]}, r"context \[70\] is neither"),
        ({"contexts": ["all"]}, "context all is neither whole nor"),
    ],
)
def test_bad_config(conf, message):
    with pytest.raises(ValueError, match=message):
        tiny(**conf)


def test_bad_context_in_evaluation():
    with pytest.raises(ValueError, match=r"context \[70, 3\] is neither"):
        tiny().context = (70, 3)


def test_row_without_frames():
    with pytest.raises(ValueError, match="row 1 of the batch: 0 feature frames"):
        tiny()(torch.randn(2, 16, 80), torch.tensor([16, 0]))


def test_large_has_the_parameters_of_nvidias():
    with torch.device("meta"):
        encoder = StreamingFastConformerEncoder(80)
    # FastConformer-large's, and one more frequency bin that reaches the Linear.
    assert sum(p.numel() for p in encoder.parameters()) == 108_762_112 + 256 * 512
