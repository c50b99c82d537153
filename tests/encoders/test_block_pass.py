"""block_pass is transformers' block: frames and gradients, behind padding, within chunks, with dropout."""

import pytest
import torch
from transformers import NemotronAsrStreamingEncoder, NemotronAsrStreamingEncoderConfig

from espnet_bestow.encoders.block_pass import block_pass
from espnet_bestow.encoders.streaming_fastconformer import chunked

B, T, D = 3, 11, 16


def encoder(**conf):
    torch.manual_seed(0)
    shape = {"hidden_size": D, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = NemotronAsrStreamingEncoderConfig(**shape, num_mel_bins=16, subsampling_conv_channels=4, **conf)
    made = NemotronAsrStreamingEncoder(config)
    for parameter in made.layers.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def layout():
    """What each frame sees, within chunks of three and before the padding, and where that is."""
    valid = torch.arange(T) < torch.tensor([T, 7, 1])[:, None]  # (B, T)
    sees = (chunked(T, (6, 2)) & valid[:, None]) | torch.eye(T, dtype=torch.bool)
    return sees[:, None], ~valid


def both(made, x):
    """The library's frames and ours."""
    sees, padding = layout()
    positions = made.encode_positions(x)
    theirs = made.layers[0](x, attention_mask=sees, all_masked_rows=padding[:, None], position_embeddings=positions)
    mask = torch.zeros(sees.shape, dtype=x.dtype).masked_fill_(~sees, -torch.inf)
    return theirs, block_pass(made.layers[0], x, positions[0], mask, padding[..., None])


@pytest.mark.parametrize("bias", [True, False])
def test_frames_and_gradients_are_those_of_transformers(bias):
    made = encoder(attention_bias=bias, convolution_bias=bias).double().eval()
    x = torch.randn(B, T, D, dtype=torch.double, requires_grad=True)
    theirs, ours = both(made, x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weight = torch.randn_like(theirs)
    wanted = [x, *made.layers.parameters()]
    for a, b in zip(
        torch.autograd.grad((theirs * weight).sum(), wanted),
        torch.autograd.grad((ours * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-10)


def test_dropout_is_that_of_training():
    made = encoder(attention_dropout=0.5, dropout=0.0, activation_dropout=0.0)
    x = torch.randn(B, T, D)
    first, second = both(made.train(), x)[1], both(made, x)[1]
    assert not torch.equal(first, second)
    torch.testing.assert_close(*both(made.eval(), x), rtol=0, atol=1e-5)
