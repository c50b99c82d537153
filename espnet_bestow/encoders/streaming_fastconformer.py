"""Cache-aware FastConformer: transformers' NemotronAsrStreamingEncoder as an ESPnet encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch.nn.utils import convert_conv2d_weight_memory_format
from transformers import NemotronAsrStreamingEncoder, NemotronAsrStreamingEncoderConfig

from espnet_bestow.encoders.block_pass import block_pass
from espnet_bestow.encoders.causal_subsampling import (
    CausalConv1dSubsampling,
    NativeStages,
    Stages,
    dw_striding_stages,
    subsampled,
)
from espnet_bestow.encoders.checkpoint import check_config_keys, load_encoder, read_config, settle_config
from espnet_bestow.encoders.chunk_step import ChunkStep
from espnet_bestow.encoders.chunks import WHOLE
from espnet_bestow.encoders.first_weights import draw_weights
from espnet_bestow.encoders.lengths import check_lengths, valid_frames
from espnet_bestow.encoders.whole_pass import WholePass
from espnet_bestow.visibility import Chunks

LARGE = {
    "hidden_size": 512,
    "num_hidden_layers": 17,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "subsampling_conv_channels": 256,
}
"""NVIDIA's cache-aware FastConformer-large."""

RIGHT_CONTEXTS = (13, 6, 1, 0)
"""Look-aheads that NVIDIA trains with, in frames of 80 ms."""

Context = tuple[int, int] | Literal["whole"]

SUBSAMPLING = ("dw_striding", "conv1d")
DROPOUTS = ("dropout", "activation_dropout", "attention_dropout")

# Keys of the library's configuration that have no argument of their own. Not among them: layerdrop, see
# fastconformer.py; sliding_window and default_num_lookahead_tokens, which are `contexts` here; the shape of the
# sub-sampling, on which streaming relies.
CONFIG_KEYS = (
    *DROPOUTS,
    "dropout_positions",
    "hidden_act",
    "attention_bias",
    "convolution_bias",
    "conv_kernel_size",
    "max_position_embeddings",
    "scale_input",
)


class StreamingFastConformerEncoder(AbsEncoder):
    """FastConformer whose frames see a limited past and the rest of their own chunk, nothing later.

    A context [left, right] cuts the frames into chunks of right + 1; a frame sees its chunk and the left / (right + 1)
    chunks before it. In the context ``whole`` attention sees everything, as in an encoder that does not stream (and is
    recomputed on growing audio). In training each pass draws one of the contexts; in evaluation ``context`` holds.

    Args:
        input_size: Feature bins.
        output_size: Width D; like the next four, by default that of FastConformer-large or of the checkpoint.
        num_blocks: Conformer blocks.
        attention_heads: Heads H.
        linear_units: Inner width of the feed-forward modules.
        subsampling_channels: Channels of the 2-D convolutions that subsample.
        dropout_rate: Dropout everywhere; by default 0.1 or the checkpoint's.
        contexts: [left, right] pairs in frames, left a multiple of right + 1, or `whole`; the first is the one in
            evaluation. By default [70, 13], [70, 6], [70, 1], [70, 0], or the checkpoint's left with the same
            look-aheads.
        subsampling: `dw_striding` as in NVIDIA's models, or `conv1d`, with which small models may learn faster.
        pretrained: Directory or hub id of such an encoder or of a model that holds one.
        config: Further keys of transformers' NemotronAsrStreamingEncoderConfig.
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
        contexts: Sequence[Sequence[int] | str] | None = None,
        subsampling: str = "dw_striding",
        pretrained: str | None = None,
        config: dict | None = None,
    ):
        super().__init__()
        extra = config or {}
        check_config_keys(extra, CONFIG_KEYS, "streaming_fastconformer")
        _check_subsampling(subsampling, pretrained)
        shape = {
            "hidden_size": output_size,
            "num_hidden_layers": num_blocks,
            "num_attention_heads": attention_heads,
            "intermediate_size": linear_units,
            "subsampling_conv_channels": subsampling_channels,
        }
        wanted: dict[str, Any] = {key: value for key, value in shape.items() if value is not None}
        wanted["num_mel_bins"] = input_size
        if subsampling == "conv1d":
            # Its output has unit size already: scaled up, it would drown what the first block adds.
            wanted["scale_input"] = False
        if dropout_rate is not None:
            wanted.update(dict.fromkeys(DROPOUTS, dropout_rate))
        wanted.update(extra)
        self.encoder: Any = _load(pretrained, wanted) if pretrained else _build(wanted)
        if subsampling == "conv1d":
            self.encoder.subsampling = CausalConv1dSubsampling(  # type: ignore[assignment]
                input_size, self.output_size()
            )
        else:
            convert_conv2d_weight_memory_format(self.encoder.subsampling, torch.channels_last)
        left = self.encoder.config.sliding_window - 1
        wished = contexts or [(left, right) for right in RIGHT_CONTEXTS if left % (right + 1) == 0]
        self.contexts = [check_context(each) for each in wished]
        self._context = self._drawn = self.contexts[0]

    @property
    def context(self) -> Context:
        """(left, right) of evaluation, in frames, or whole; assign another, of training or not, to change it."""
        return self._context

    @context.setter
    def context(self, context: Sequence[int] | str) -> None:
        self._context = check_context(context)

    @property
    def chunks(self) -> Chunks:
        """Frames that come at once: in training as the last pass drew it, in evaluation those of ``context``."""
        context = self._drawn if self.training else self._context
        return Chunks() if context == WHOLE else Chunks(context[1] + 1)

    def output_size(self) -> int:
        return self.encoder.config.hidden_size

    def chunk_step(self, context: Sequence[int] | None = None) -> ChunkStep:
        """The same encoder chunk by chunk, with its weights as they are now.

        Args:
            context: [left, right]; by default that of evaluation.
        """
        pair = check_context(context or self.context)
        if pair == WHOLE:
            raise ValueError("streaming_fastconformer: the context whole has no chunks; name a [left, right]")
        return ChunkStep(self.encoder, self._stages(), pair)

    def whole_pass(self) -> WholePass | None:
        """The same encoder natively, with its weights as they are now; None where there are no kernels for it."""
        at_home = all(each.device.type == "cpu" and each.dtype == torch.float32 for each in self.parameters())
        quick = WholePass(self.encoder, self._stages()) if at_home and self.context == WHOLE else None
        return quick if quick is not None and quick.fits else None

    def _stages(self) -> Stages | NativeStages:
        subsampling = self.encoder.subsampling
        if isinstance(subsampling, CausalConv1dSubsampling):
            return subsampling.stages()
        return dw_striding_stages(subsampling, self.encoder.config.num_mel_bins)

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
        check_lengths(ilens, "streaming_fastconformer")
        encoder, config = self.encoder, self.encoder.config
        xs_pad = xs_pad[:, : int(ilens.max())]
        valid = valid_frames(ilens, xs_pad.shape[1])
        hidden = encoder.subsampling(xs_pad.masked_fill(~valid[..., None], 0.0), valid) * encoder.input_scale
        olens = subsampled(ilens)
        valid = valid_frames(olens, hidden.shape[1])
        # The same for all rows; dropout of positions is drawn once for them.
        distances = F.dropout(encoder.encode_positions(hidden[:1])[0], config.dropout_positions, self.training)
        hidden = F.dropout(hidden, config.dropout, self.training)
        sees = chunked(hidden.shape[1], self._drawn_context(), hidden.device) & valid[:, None]
        # A frame of padding sees itself, so that no softmax runs over nothing.
        sees = sees | torch.eye(hidden.shape[1], dtype=torch.bool, device=hidden.device)
        mask = torch.zeros_like(sees, dtype=hidden.dtype).masked_fill_(~sees, -torch.inf)[:, None]  # (B, 1, F, F)
        padding = ~valid[..., None]
        for block in encoder.layers:
            hidden = block_pass(block, hidden, distances, mask, padding)
        return hidden, olens, None

    def _drawn_context(self) -> Context:
        if not self.training:
            return self.context
        self._drawn = self.contexts[int(torch.randint(len(self.contexts), ()))]
        return self._drawn


def chunked(frames: int, context: Context, device: torch.device | None = None) -> torch.Tensor:
    """Which frame sees which: (F, F) bool, queries first."""
    left, right = (0, frames) if context == WHOLE else context
    chunk = torch.arange(frames, device=device) // (right + 1)
    behind = chunk[:, None] - chunk
    return (behind >= 0) & (behind <= left // (right + 1))


def check_context(context: Sequence[int] | str) -> Context:
    """``whole``, or (left, right) if chunks of right + 1 frames fill the left context exactly."""
    if context == WHOLE:
        return WHOLE
    if isinstance(context, str) or len(context) != 2 or min(context) < 0 or context[0] % (context[1] + 1):
        shown = context if isinstance(context, str) else list(context)
        raise ValueError(
            f"streaming_fastconformer: context {shown} is neither whole nor [left, right] with left a multiple of "
            "right + 1"
        )
    return int(context[0]), int(context[1])


def _check_subsampling(subsampling: str, pretrained: str | None) -> None:
    if subsampling not in SUBSAMPLING:
        raise ValueError(f"streaming_fastconformer: subsampling {subsampling!r}; known: {', '.join(SUBSAMPLING)}")
    if pretrained and subsampling != "dw_striding":
        raise ValueError(
            f"streaming_fastconformer: subsampling {subsampling} does not fit pretrained {pretrained!r}, "
            "which has dw_striding"
        )


def _build(wanted: Mapping[str, Any]) -> NemotronAsrStreamingEncoder:
    config = NemotronAsrStreamingEncoderConfig(**{**LARGE, **wanted}, layerdrop=0.0)
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"streaming_fastconformer: output_size {config.hidden_size} is not a multiple of "
            f"attention_heads {config.num_attention_heads}"
        )
    encoder = NemotronAsrStreamingEncoder(config)
    draw_weights(encoder)
    return encoder


def _load(source: str, wanted: Mapping[str, Any]) -> NemotronAsrStreamingEncoder:
    whole = read_config(source)
    config = getattr(whole, "encoder_config", whole)
    if not isinstance(config, NemotronAsrStreamingEncoderConfig):
        raise ValueError(
            f"pretrained encoder {source!r} is a {whole.model_type!r} model without a cache-aware FastConformer; "
            "streaming_fastconformer reads models with one, such as NemotronAsrStreamingForRNNT"
        )
    settle_config(config, wanted, (*DROPOUTS, "dropout_positions"), source)
    if config.subsampling_factor != 8:
        raise ValueError(f"pretrained encoder {source!r} subsamples by {config.subsampling_factor}, not by 8")
    config.layerdrop = 0.0
    return load_encoder(NemotronAsrStreamingEncoder, source, config)
