"""Whisper's encoder from transformers as an ESPnet encoder.

Its input is Whisper's own log-mel (`whisper_frontend.py`), with `normalize: null`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder
from torch.nn import functional as F
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from espnet_bestow.encoders.checkpoint import (
    check_config_keys,
    load_encoder,
    read_config,
    settle_config,
)
from espnet_bestow.encoders.lengths import check_lengths, valid_frames
from espnet_bestow.errors import BadRowError

TINY = {
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
}
"""Whisper tiny."""

DROPOUTS = ("dropout", "activation_dropout", "attention_dropout")
CONFIG_KEYS = (
    *DROPOUTS,
    "activation_function",
    "max_source_positions",
    "scale_embedding",
    "init_std",
)
FRAMES_PER_SECOND = 100


class HFWhisperEncoder(AbsEncoder):
    """Whisper's encoder on the true length of the audio, from a config or from pretrained weights.

    The position embeddings are cut to the batch and padding is masked, so 5 s of audio cost 5 s.

    Args:
        input_size: Mel bins of the frontend, 80, or 128 for large-v3.
        output_size: Width D; like the next three, by default Whisper tiny's or the checkpoint's.
        num_blocks: Encoder layers.
        attention_heads: Heads H.
        linear_units: Inner width of the feed-forward modules.
        dropout_rate: Dropout everywhere; by default 0 or the checkpoint's.
        pretrained: Directory or hub id of a Whisper model.
        config: Further keys of transformers' WhisperConfig that concern the encoder.
    """

    name = "hf_whisper"
    ignores_padding = True

    def __init__(
        self,
        input_size: int,
        output_size: int | None = None,
        num_blocks: int | None = None,
        attention_heads: int | None = None,
        linear_units: int | None = None,
        dropout_rate: float | None = None,
        pretrained: str | None = None,
        config: dict | None = None,
    ):
        super().__init__()
        extra = config or {}
        check_config_keys(extra, CONFIG_KEYS, self.name)
        shape = {
            "d_model": output_size,
            "encoder_layers": num_blocks,
            "encoder_attention_heads": attention_heads,
            "encoder_ffn_dim": linear_units,
        }
        wanted: dict[str, Any] = {key: value for key, value in shape.items() if value is not None}
        wanted["num_mel_bins"] = input_size
        if dropout_rate is not None:
            wanted.update(dict.fromkeys(DROPOUTS, dropout_rate))
        wanted.update(extra)
        self.encoder = _load(pretrained, wanted) if pretrained else _build(wanted)
        self.max_frames = 2 * self.encoder.config.max_source_positions

    def output_size(self) -> int:
        return self.encoder.config.d_model

    def forward(
        self, xs_pad: torch.Tensor, ilens: torch.Tensor, prev_states: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """Encode a batch.

        Args:
            xs_pad: (B, T, input_size) Whisper log-mel.
            ilens: (B,) true numbers of frames.
            prev_states: Unused, part of ESPnet's encoder face.

        Returns:
            (B, F, D) encoder frames of 20 ms, (B,) their true numbers, None.
        """
        check_lengths(ilens, self.name)
        self._check_window(ilens)
        olens = (ilens - 1) // 2 + 1
        return self._encode(xs_pad[:, : int(ilens.max())], ilens, olens), olens, None

    def _encode(self, features: torch.Tensor, ilens: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """(B, T, input_size) -> (B, F, D), blind to everything behind the true lengths."""
        valid = valid_frames(ilens, features.shape[1])[:, None]  # (B, 1, T)
        features = features.transpose(1, 2).masked_fill(~valid, 0.0)
        hidden = F.gelu(self.encoder.conv1(features)).masked_fill(~valid, 0.0)
        hidden = F.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        keys = valid_frames(olens, hidden.shape[1])[:, None, None]  # (B, 1, 1, F)
        return self._run_layers(hidden, keys)

    def _run_layers(self, hidden: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """(B, F, D) -> (B, F, D). WhisperEncoder.forward itself only takes 30 s and has no mask."""
        hidden = hidden + self.encoder.embed_positions.weight[: hidden.shape[1]]
        hidden = F.dropout(hidden, p=self.encoder.dropout, training=self.training)
        for layer in self.encoder.layers:
            hidden = layer(hidden, keys)
        return self.encoder.layer_norm(hidden)

    def _check_window(self, ilens: torch.Tensor) -> None:
        row = int(ilens.argmax())
        frames = int(ilens[row])
        if frames > self.max_frames:
            raise BadRowError(
                row,
                f"{frames / FRAMES_PER_SECOND:.2f} s ({frames} frames) of audio; {self.name} takes at most "
                f"{self.max_frames / FRAMES_PER_SECOND:.2f} s ({self.max_frames} frames)",
            )


class FullWindowWhisperEncoder(HFWhisperEncoder):
    """Whisper's encoder as it was trained: every utterance is followed by silence up to 30 s.

    Gives what transformers' feature extractor and encoder give, at the price of 30 s for each row.
    Worth it for a frozen encoder; one that is trained learns to do without the silence.
    """

    name = "hf_whisper_full_window"

    def _encode(self, features: torch.Tensor, ilens: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """(B, T, input_size) -> (B, F, D)."""
        features = F.pad(features, (0, 0, 0, self.max_frames - features.shape[1]))
        valid = valid_frames(ilens, self.max_frames)[:, :, None]  # (B, max_frames, 1)
        loudest = features.masked_fill(~valid, -torch.inf).amax(dim=(1, 2), keepdim=True)
        # Whisper's log-mel is cut 2.0 (80 dB) under its loudest bin; digital silence is -1.5.
        silence = (loudest - 2.0).clamp(min=-1.5)
        padded = torch.where(valid, features, silence)
        hidden = F.gelu(self.encoder.conv1(padded.transpose(1, 2)))
        hidden = F.gelu(self.encoder.conv2(hidden)).transpose(1, 2)
        return self._run_layers(hidden, None)[:, : int(olens.max())]


def _build(wanted: Mapping[str, Any]) -> WhisperEncoder:
    config = WhisperConfig(**{**TINY, **wanted})
    if config.d_model % config.encoder_attention_heads:
        raise ValueError(
            f"hf_whisper: output_size {config.d_model} is not a multiple of "
            f"attention_heads {config.encoder_attention_heads}"
        )
    return WhisperEncoder(config)


def _load(source: str, wanted: Mapping[str, Any]) -> WhisperEncoder:
    config = read_config(source)
    if not isinstance(config, WhisperConfig):
        raise ValueError(
            f"pretrained encoder {source!r} is a {config.model_type!r} model; hf_whisper reads Whisper models"
        )
    settle_config(config, wanted, DROPOUTS, source)
    return load_encoder(WhisperEncoder, source, config, {r"^(model\.)?encoder\.": ""})
