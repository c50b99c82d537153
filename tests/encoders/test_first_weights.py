"""First weights of FastConformers: blocks begin as little more than their input."""

import pytest
import torch

from espnet_bestow.encoders.fastconformer import FastConformerEncoder
from espnet_bestow.encoders.streaming_fastconformer import StreamingFastConformerEncoder

SMALL = {"output_size": 32, "num_blocks": 2, "attention_heads": 4, "linear_units": 64, "subsampling_channels": 16}


@pytest.mark.parametrize("kind", [FastConformerEncoder, StreamingFastConformerEncoder])
def test_what_enters_a_block_comes_out_of_it(kind: type) -> None:
    torch.manual_seed(0)
    encoder = kind(80, **SMALL).eval()
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for block in encoder.encoder.layers:
        block.norm_feed_forward1.register_forward_pre_hook(lambda _, x: seen.append((x[0], x[0])))
        block.norm_out.register_forward_pre_hook(lambda _, x: seen.append((seen.pop()[0], x[0])))
    encoder(torch.randn(2, 160, 80), torch.tensor([160, 160]))
    assert len(seen) == SMALL["num_blocks"]
    for entered, left in seen:
        added = (left - entered).norm() / entered.norm()
        assert 1e-4 < added < 0.2
