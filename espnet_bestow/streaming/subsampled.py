"""Sub-sampled frames of audio that is still arriving: what is heard of it before any frame sees its future.

Each is computed once, like the features under it, from what a stream remembers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from espnet_bestow.encoders.causal_subsampling import NativeStages, Piece, Stages, subsampled
from espnet_bestow.encoders.chunk_step import FACTOR, LEAD
from espnet_bestow.streaming.features import Span, StreamFeatures

BLOCK = 4
"""Frames that are computed at a time, so that each is rounded alike whatever it is asked for with."""


class SubsampledPast(NamedTuple):
    """What a stream remembers between two spans."""

    features: Any  # of the features
    stages: Tensor  # (n,) the last inputs of the sub-sampling's stages


class Subsampled:
    """Frames of 80 ms, any that follow a stream's past.

    Args:
        features: what is sub-sampled.
        stages: what sub-samples, by FACTOR.
        width: of the frames.
    """

    def __init__(self, features: StreamFeatures, stages: Stages | NativeStages, width: int):
        self.features = features
        self.stages = stages
        self.width = width
        self.sample_rate = features.sample_rate
        self._nothing = SubsampledPast(features.open(), torch.zeros(stages.remembered, device=features.device))

    def complete(self, samples: int) -> int:
        """Frames that depend on the first ``samples`` samples only, in whole blocks: nothing later changes them."""
        return (self.features.complete(samples) + LEAD) // FACTOR // BLOCK * BLOCK

    def all(self, samples: int) -> int:
        """Frames of a recording of ``samples`` samples, the last of which see the silence after it."""
        return subsampled(self.features.all(samples)) if samples else 0

    def open(self) -> SubsampledPast:
        """What a stream remembers of no frames."""
        return self._nothing

    @torch.inference_mode()
    def __call__(self, spans: Sequence[Span]) -> tuple[Tensor, list[SubsampledPast]]:
        """Frames (B, F, D) of each span, which mean nothing behind its last, and what is remembered after them."""
        x, features, ends = under(self.features, [span._replace(past=span.past.features) for span in spans])
        pieces = [Piece(s.first, s.last - s.first, end) for s, end in zip(spans, ends, strict=True)]
        frames, stages = self.stages.advance(x, torch.stack([span.past.stages for span in spans]), pieces, BLOCK)
        # Views, for nobody knows which of them are kept.
        return frames, [SubsampledPast(*each) for each in zip(features, stages, strict=True)]


def under(features: StreamFeatures, spans: Sequence[Span]) -> tuple[Tensor, list[Any], list[int | None]]:
    """The features under sub-sampled frames.

    Args:
        features: of a model.
        spans: of sub-sampled frames; what they remember is of the features.

    Returns:
        (B, T, 80), from the first one on that a span's first frame is made of; what is remembered after them; and how
        many there are where the audio ends under a span, else None.
    """
    known = [features.available(span.ear, span.end) for span in spans]
    lasts = [FACTOR * span.last - LEAD for span in spans]
    x, pasts = features(
        [
            Span(span.ear, max(FACTOR * span.first - LEAD, 0), min(last, size), span.past, span.end)
            for span, last, size in zip(spans, lasts, known, strict=True)
        ]
    )
    return x, pasts, [size if size < last else None for size, last in zip(known, lasts, strict=True)]
