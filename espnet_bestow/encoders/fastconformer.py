"""FastConformer: transformers' ParakeetEncoder as an ESPnet encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch import nn
from torch.nn.utils import convert_conv2d_weight_memory_format
from transformers import ParakeetEncoder, ParakeetEncoderConfig

from espnet_bestow.encoders.checkpoint import (
    check_config_keys,
    load_encoder,
    read_config,
    settle_config,
)
from espnet_bestow.encoders.first_weights import draw_weights
from espnet_bestow.encoders.lengths import check_lengths, valid_frames
from espnet_bestow.encoders.relative_keys import share_relative_keys

LARGE = {
    "hidden_size": 512,
    "num_hidden_layers": 17,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "subsampling_conv_channels": 256,
}
"""NVIDIA's FastConformer-large, 108.76 M parameters with 80 mel bins."""

DROPOUTS = ("dropout", "activation_dropout", "attention_dropout")

# Keys of ParakeetEncoderConfig that have no argument of their own. Not among them: layerdrop, which
# transformers and converted checkpoints set to 0.1 although NVIDIA trained with 0. It breaks
# fine-tuning and is always 0 here.
CONFIG_KEYS = (
    *DROPOUTS,
    "dropout_positions",
    "hidden_act",
    "attention_bias",
    "convolution_bias",
    "conv_kernel_size",
    "subsampling_factor",
    "subsampling_conv_kernel_size",
    "subsampling_conv_stride",
    "max_position_embeddings",
    "scale_input",
    "initializer_range",
)


class FastConformerEncoder(AbsEncoder):
    """FastConformer with 8x depthwise-separable subsampling, from a config or a checkpoint.

    Args:
        input_size: Feature bins.
        output_size: Width D; like the next four, by default that of FastConformer-large or of the
            checkpoint.
        num_blocks: Conformer blocks.
        attention_heads: Heads H.
        linear_units: Inner width of the feed-forward modules.
        subsampling_channels: Channels of the convolutions that subsample.
        dropout_rate: Dropout everywhere; by default 0.1 or the checkpoint's.
        conv_norm: `batch_norm`, or `layer_norm`, with which training too is independent of padding
            and of how a batch is split over processes.
        pretrained: Directory or hub id of a Parakeet encoder or of a model that holds one.
        config: Further keys of transformers' ParakeetEncoderConfig.
    """

    ignores_padding = True

    def __init__(  # noqa: PLR0913 (ESPnet passes encoder_conf as keywords)
        self,
        input_size: int,
        output_size: int | None = None,
        num_blocks: int | None = None,
        attention_heads: int | None = None,
        linear_units: int | None = None,
        subsampling_channels: int | None = None,
        dropout_rate: float | None = None,
        conv_norm: str = "batch_norm",
        pretrained: str | None = None,
        config: dict | None = None,
    ):
        super().__init__()
        extra = config or {}
        check_config_keys(extra, CONFIG_KEYS, "fastconformer")
        shape = {
            "hidden_size": output_size,
            "num_hidden_layers": num_blocks,
            "num_attention_heads": attention_heads,
            "intermediate_size": linear_units,
            "subsampling_conv_channels": subsampling_channels,
        }
        wanted: dict[str, Any] = {key: value for key, value in shape.items() if value is not None}
        wanted["num_mel_bins"] = input_size
        if dropout_rate is not None:
            wanted.update(dict.fromkeys(DROPOUTS, dropout_rate))
        wanted.update(extra)
        self.encoder = _load(pretrained, wanted) if pretrained else _build(wanted)
        share_relative_keys(self.encoder)
        # Depthwise convolutions run faster so; a training step of the small recipe costs 20 % less.
        convert_conv2d_weight_memory_format(self.encoder.subsampling, torch.channels_last)
        _set_conv_norm(self.encoder, conv_norm, pretrained)

    def output_size(self) -> int:
        return self.encoder.config.hidden_size

    def train(self, mode: bool = True) -> "FastConformerEncoder":
        """As nn.Module, except that frozen batch norms keep their statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d) and not module.weight.requires_grad:
                module.eval()
        return self

    def forward(
        self, xs_pad: torch.Tensor, ilens: torch.Tensor, prev_states: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Encode a batch.

        Args:
            xs_pad: (B, T, input_size) features.
            ilens: (B,) true numbers of frames.
            prev_states: Unused, part of ESPnet's encoder face.

        Returns:
            (B, F, D) encoder frames, (B,) their true numbers, None.
        """
        check_lengths(ilens, "fastconformer")
        xs_pad = xs_pad[:, : int(ilens.max())]
        valid = valid_frames(ilens, xs_pad.shape[1])
        # The library masks after each convolution but not before the first.
        xs_pad = xs_pad.masked_fill(~valid[:, :, None], 0.0)
        output = self.encoder(xs_pad, attention_mask=valid)
        return output.last_hidden_state, output.attention_mask.sum(-1), None


class _ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, D, F)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden.transpose(1, 2)).transpose(1, 2)


def _build(wanted: Mapping[str, Any]) -> ParakeetEncoder:
    config = ParakeetEncoderConfig(**{**LARGE, **wanted}, layerdrop=0.0)
    _check_shape(config)
    encoder = ParakeetEncoder(config)
    draw_weights(encoder)
    return encoder


def _load(source: str, wanted: Mapping[str, Any]) -> ParakeetEncoder:
    whole = read_config(source)
    config = getattr(whole, "encoder_config", whole)
    if not isinstance(config, ParakeetEncoderConfig):
        raise ValueError(
            f"pretrained encoder {source!r} is a {whole.model_type!r} model without a Parakeet "
            "encoder; fastconformer reads models with one, such as ParakeetForCTC"
        )
    settle_config(config, wanted, (*DROPOUTS, "dropout_positions"), source)
    config.layerdrop = 0.0
    return load_encoder(ParakeetEncoder, source, config)


def _check_shape(config: ParakeetEncoderConfig) -> None:
    if config.num_mel_bins % config.subsampling_factor:
        raise ValueError(
            f"fastconformer: input_size {config.num_mel_bins} is not a multiple of "
            f"subsampling_factor {config.subsampling_factor}"
        )
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"fastconformer: output_size {config.hidden_size} is not a multiple of "
            f"attention_heads {config.num_attention_heads}"
        )


def _set_conv_norm(encoder: ParakeetEncoder, conv_norm: str, pretrained: str | None) -> None:
    if conv_norm not in ("batch_norm", "layer_norm"):
        raise ValueError(f"fastconformer: conv_norm {conv_norm!r}; known: batch_norm, layer_norm")
    if conv_norm == "batch_norm":
        return
    if pretrained:
        raise ValueError(
            f"fastconformer: conv_norm layer_norm does not fit pretrained {pretrained!r}, "
            "whose statistics are those of batch_norm"
        )
    for block in encoder.layers:
        conv: Any = block.conv
        conv.norm = _ChannelLayerNorm(encoder.config.hidden_size)
