"""Parameter counts of the paper's Table 4, on the meta device.

FastConformer-large, LoRA of rank 256 on the fused qkv of a frozen TinyLlama-1.1B, and the connector.
"""

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from espnet_bestow.connectors import CrossAttentionConnector, RecurrentConnector
from espnet_bestow.encoders import FastConformerEncoder
from espnet_bestow.llm.lora import add_lora

TINY_LLAMA = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    vocab_size=32000,
)
D_LLM, D_ENC = 2048, 512
ROWS = {
    "8 blocks": (276, lambda: CrossAttentionConnector(D_LLM, D_ENC, num_blocks=8, speech_projection=2048)),
    "2 blocks": (175, lambda: CrossAttentionConnector(D_LLM, D_ENC, num_blocks=2, speech_projection=2048)),
    "1 block": (158, lambda: CrossAttentionConnector(D_LLM, D_ENC, num_blocks=1, speech_projection=2048)),
    "1 cross-attention": (
        154,
        lambda: CrossAttentionConnector(D_LLM, D_ENC, num_blocks=1, self_attention=False, speech_projection=2048),
    ),
    "2 RNN + 1 cross-attention": (203, lambda: RecurrentConnector(D_LLM, D_ENC)),
}


def trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.fixture(scope="module")
def common():
    """Encoder and adapters, the same in every row."""
    with torch.device("meta"):
        encoder = FastConformerEncoder(80)
        llm = AutoModelForCausalLM.from_config(TINY_LLAMA)
        qkv = ["q_proj", "k_proj", "v_proj"]
        add_lora(llm, LoraConfig(r=256, lora_alpha=256, target_modules=qkv), share_input=qkv)
    return trainable(encoder), trainable(llm)


def test_the_common_parts(common):
    encoder, adapters = common
    assert encoder == 108_762_112
    assert adapters == 22 * 256 * (2048 + 2560)


@pytest.mark.parametrize("row", ROWS)
def test_millions_of_trained_parameters(common, row):
    millions, build = ROWS[row]
    with torch.device("meta"):
        connector = build()
    assert (sum(common) + trainable(connector)) // 1_000_000 == millions
