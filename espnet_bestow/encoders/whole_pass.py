"""The cache-aware FastConformer over recordings in the context `whole`, natively and without padding.

A recording is one chunk without a past that attends to all of itself. This serves streams whose encoder is computed
again and again on a growing beginning; training has :mod:`.block_pass`.
"""

from typing import Any

import torch
from torch import Tensor

from espnet_bestow.encoders.causal_subsampling import NativeStages, Stages, subsample, subsampled
from espnet_bestow.encoders.chunk_block import ChunkBlock
from espnet_bestow.ops import native

_FRAMES = 64
"""Relative positions are known for so many at first; the tables grow with the recordings."""


class WholePass:
    """Encodes recordings as :class:`StreamingFastConformerEncoder` does.

    Args:
        encoder: the transformers encoder, with its weights as they are now.
        stages: its sub-sampling.
    """

    def __init__(self, encoder: Any, stages: Stages | NativeStages):
        self.encoder = encoder
        self.stages = stages
        self.begun_width = 4 * encoder.config.hidden_size
        """Of a frame with its query, key and value."""
        with torch.inference_mode():
            # For their weights alone: the native call knows the lengths.
            self.blocks = [ChunkBlock(block, self._distances(1), 0, 1) for block in encoder.layers]
            laid_out = [block.weights() for block in self.blocks]
        self._weights = [weight for weights in laid_out if weights is not None for weight in weights]
        self._beginning = self._weights[: ChunkBlock.BEGINNING]
        self.fits = native is not None and None not in laid_out
        self._size = 0  # frames for which relative positions are known

    @torch.inference_mode()
    def __call__(self, feats: Tensor, lengths: Tensor) -> list[Tensor]:
        """Features (B, T, 80), true lengths (B,) -> the frames of each recording, (F_i, D)."""
        return self.encode(self.begin(subsample(self.stages, feats, lengths)), subsampled(lengths))

    @torch.inference_mode()
    def begin(self, x: Tensor) -> Tensor:
        """What sub-sampled frames (R, D) become until they look at others, (R, 4 D); each the same for ever."""
        assert native is not None
        return native.conformer_begin(x * self.encoder.input_scale, self._beginning, self.blocks[0].block.norm_out.eps)

    @torch.inference_mode()
    def encode(self, x: Tensor, counts: Tensor, wanted: Tensor | None = None) -> list[Tensor]:
        """Encodes what has begun.

        Args:
            x: (R, 4 D) frames of recordings, one after the other.
            counts: (B,) how many of each.
            wanted: (B,) how many of each are asked for, at least 1; default: all. The others end before the last block.

        Returns:
            these of each.
        """
        assert native is not None and self.fits
        self._know(int(counts.max()))
        wanted = counts if wanted is None else wanted
        block = self.blocks[0]
        out = native.conformer_whole(
            x, counts, wanted, self._weights, len(self.blocks), block.kernel, block.heads,
            self._size, block.block.norm_out.eps, block.scaling,
        )  # fmt: skip
        return list(out.split(wanted.tolist()))

    def _know(self, frames: int) -> None:
        if frames <= self._size:
            return
        most = self.encoder.config.max_position_embeddings
        self._size = max(frames, min(max(2 * frames, _FRAMES), most))
        distances = self._distances(self._size)
        for block in self.blocks:
            place = next(n for n, weight in enumerate(self._weights) if weight is block.relative)
            self._weights[place] = block.relative = block.of_distances(distances)

    def _distances(self, frames: int) -> Tensor:
        """Embedded distances from frames - 1 down to -(frames - 1), (2 frames - 1, D)."""
        like = self.encoder.layers[0].norm_out.weight
        return self.encoder.encode_positions(like.new_zeros(1, frames, len(like)))[0]
