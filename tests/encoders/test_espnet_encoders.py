"""ESPnet's own encoders, built by ASRTask's names, give what the model needs of them."""

import pytest
import torch
from espnet2.tasks.asr import encoder_choices

TRANSFORMER = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 1}
BRANCHFORMER = {"output_size": 16, "attention_heads": 2, "cgmlp_linear_units": 32, "num_blocks": 1}
CONFS = {
    "transformer": TRANSFORMER,
    "conformer": {**TRANSFORMER, "cnn_module_kernel": 7},
    "branchformer": {**BRANCHFORMER, "cgmlp_conv_kernel": 7},
    "e_branchformer": {**BRANCHFORMER, "cgmlp_conv_kernel": 7, "linear_units": 24},
    "contextual_block_conformer": {
        **TRANSFORMER,
        "cnn_module_kernel": 7,
        "block_size": 16,
        "hop_size": 8,
        "look_ahead": 4,
    },
    "vgg_rnn": {"hidden_size": 16, "output_size": 16, "num_layers": 1},
}


@pytest.mark.parametrize("name", CONFS)
def test_gives_frames_and_true_lengths(name):
    torch.manual_seed(0)
    encoder = encoder_choices.get_class(name)(input_size=80, **CONFS[name])
    features, lengths = torch.randn(2, 160, 80), torch.tensor([160, 96])
    ys, olens = encoder(features, lengths)[:2]
    assert encoder.output_size() == ys.shape[-1] == 16
    assert ys.shape[0] == 2
    assert 0 < olens[1] < olens[0] <= ys.shape[1]
    assert ys.isfinite().all()
    ys.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
