"""NVIDIA NeMo's cache-aware FastConformer with our weights. Runs where NeMo 3.0 is installed (`make bench-nemo`)."""

import re

import torch
from nemo.collections.asr.modules import ConformerEncoder
from torch import Tensor, nn

RENAMED = (
    (r"^subsampling\.conv_in\.", "pre_encode.conv.0."),
    (r"^subsampling\.layers\.0\.depthwise_conv\.", "pre_encode.conv.2."),
    (r"^subsampling\.layers\.0\.pointwise_conv\.", "pre_encode.conv.3."),
    (r"^subsampling\.layers\.1\.depthwise_conv\.", "pre_encode.conv.5."),
    (r"^subsampling\.layers\.1\.pointwise_conv\.", "pre_encode.conv.6."),
    (r"^subsampling\.linear\.", "pre_encode.out."),
    (r"self_attn\.([qkv])_proj\.", r"self_attn.linear_\1."),
    (r"self_attn\.o_proj\.", "self_attn.linear_out."),
    (r"self_attn\.relative_k_proj\.", "self_attn.linear_pos."),
    (r"self_attn\.bias_([uv])$", r"self_attn.pos_bias_\1"),
    (r"conv\.norm\.", "conv.batch_norm."),
)
"""From the names of transformers' NemotronAsrStreamingEncoder to NeMo's."""


def nemo_name(name: str) -> str:
    """The NeMo parameter that is `name` in transformers."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def nemo_encoder(ours: nn.Module, contexts: list[list[int]]) -> ConformerEncoder:
    """NeMo's encoder of the same shape and weights as a transformers NemotronAsrStreamingEncoder."""
    config = ours.config
    theirs = ConformerEncoder(
        feat_in=config.num_mel_bins,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        ff_expansion_factor=config.intermediate_size // config.hidden_size,
        subsampling="dw_striding",
        subsampling_factor=8,
        subsampling_conv_channels=config.subsampling_conv_channels,
        causal_downsampling=True,
        att_context_size=contexts,
        att_context_style="chunked_limited",
        conv_kernel_size=config.conv_kernel_size,
        conv_norm_type="layer_norm",
        conv_context_size="causal",
        xscaling=config.scale_input,
        untie_biases=True,
    ).eval()
    weights = {nemo_name(name): value for name, value in ours.state_dict().items()}
    # (H, d) biases and Linear-like kernels have the same shapes in both.
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return theirs


class NemoStream:
    """One stream through NeMo's cache_aware_stream_step."""

    def __init__(self, encoder: ConformerEncoder, context: list[int]):
        self.encoder = encoder
        encoder.set_default_att_context_size(context)
        encoder.setup_streaming_params()
        self.caches = encoder.get_initial_cache_state(batch_size=1)
        self.before: Tensor | None = None

    @torch.inference_mode()
    def __call__(self, feats: Tensor, last: bool = False) -> Tensor:
        """(1, T, 80) features that follow the earlier ones -> (1, F, D)."""
        config = self.encoder.streaming_cfg
        again = config.pre_encode_cache_size
        again = again[1] if isinstance(again, list | tuple) else again
        first = self.before is None
        x = feats if first else torch.cat([self.before, feats], 1)
        if not first and x.shape[1] < again + feats.shape[1]:  # [70,0]: the first chunk is shorter than what is re-fed
            x = torch.nn.functional.pad(x, (0, 0, again + feats.shape[1] - x.shape[1], 0))
        out, _, *self.caches = self.encoder.cache_aware_stream_step(
            x.transpose(1, 2),
            torch.tensor([x.shape[1]]),
            *self.caches,
            keep_all_outputs=last,
            drop_extra_pre_encoded=0 if first else None,
        )
        self.before = (feats if first else torch.cat([self.before, feats], 1))[:, -again:]
        return out.transpose(1, 2)
