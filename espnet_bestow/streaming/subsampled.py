"""Sub-sampled frames of audio that is still arriving: what is heard of it before any frame sees its future.

Each is computed once, like the features under it, from what a stream remembers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from espnet_bestow.encoders.causal_subsampling import NativeStages, Piece, Stages, subsampled
from espnet_bestow.encoders.chunk_step import FACTOR, LEAD
from espnet_bestow.encoders.log_mel import NativeLogMel
from espnet_bestow.encoders.running_mvn import RunningMVN
from espnet_bestow.encoders.whole_pass import WholePass
from espnet_bestow.ops import native
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
        self.at_once = FromAudio.of(features, stages)
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
    def __call__(self, spans: Sequence[Span]) -> tuple[Sequence[Tensor], list[SubsampledPast]]:
        """Frames (F, D) of each span, which mean nothing behind its last, and what is remembered after them."""
        if not spans:
            return [], []
        known, ends = under(self.features, [span._replace(past=span.past.features) for span in spans])
        pieces = [Piece(s.first, s.last - s.first, end) for s, end in zip(spans, ends, strict=True)]
        stages = torch.stack([span.past.stages for span in spans])
        frames: Sequence[Tensor]
        if self.at_once is not None:
            frames, features, stages = self.at_once(known, pieces, stages)
        else:
            x, features = self.features(known)
            padded, stages = self.stages.advance(x, stages, pieces, BLOCK)
            frames = padded.unbind()
        # Views, for nobody knows which of them are kept.
        return frames, [SubsampledPast(*each) for each in zip(features, stages, strict=True)]


class Begun(Subsampled):
    """Sub-sampled frames that have begun the encoder's first block, as far as each goes alone.

    Args:
        features: what is sub-sampled.
        encoder: that goes on with them.
    """

    def __init__(self, features: StreamFeatures, encoder: WholePass):
        super().__init__(features, encoder.stages, encoder.begun_width)
        self.begin = encoder.begin

    @torch.inference_mode()
    def __call__(self, spans: Sequence[Span]) -> tuple[Sequence[Tensor], list[SubsampledPast]]:
        """See base class."""
        frames, pasts = super().__call__(spans)
        if not frames:
            return frames, pasts
        return self.begin(torch.cat(list(frames))).split([len(each) for each in frames]), pasts


class FromAudio(NamedTuple):
    """Features and sub-sampling in one native call: what lies between audio and frames is not written down."""

    log_mel: NativeLogMel
    normalize: RunningMVN
    stages: NativeStages

    @classmethod
    def of(cls, features: StreamFeatures, stages: Stages | NativeStages) -> "FromAudio | None":
        """Where there are kernels for all three."""
        log_mel, normalize = features.native, features.normalize
        if log_mel is None or not isinstance(normalize, RunningMVN) or not isinstance(stages, NativeStages):
            return None
        return cls(log_mel, normalize, stages)

    def __call__(
        self, spans: Sequence[Span], pieces: Sequence[Piece], past: Tensor
    ) -> tuple[Sequence[Tensor], Sequence[Any], Tensor]:
        """Spans of features, the sub-sampled frames that these make, and what the stages remember of those before.

        Returns:
            the frames (F, D) of each piece; what the features and what the stages remember after them.
        """
        assert native is not None
        bounds = [
            (span.first, span.last, *piece[:2], -1 if piece.end is None else piece.end)
            for span, piece in zip(spans, pieces, strict=True)
        ]
        moments = torch.stack([span.past for span in spans])
        constants = *self.log_mel.constants, *self.normalize.constants(moments.shape[2]), *self.stages.constants
        audio = [span.ear.samples(0, span.end) for span in spans]
        frames, *after = native.subsampled_audio(
            audio, torch.tensor(bounds), moments, past, BLOCK, self.log_mel.hop, *constants
        )
        return frames.split([piece.frames for piece in pieces]), *after


def under(features: StreamFeatures, spans: Sequence[Span]) -> tuple[list[Span], list[int | None]]:
    """The features under sub-sampled frames.

    Args:
        features: of a model.
        spans: of sub-sampled frames; what they remember is of the features.

    Returns:
        spans of features, from the first one on that a span's first frame is made of; and how many features there are
        where the audio ends under a span, else None.
    """
    known = [features.available(span.ear, span.end) for span in spans]
    lasts = [FACTOR * span.last - LEAD for span in spans]
    firsts = [max(FACTOR * span.first - LEAD, 0) for span in spans]
    found = [
        span._replace(first=first, last=max(min(last, size), first))
        for span, first, last, size in zip(spans, firsts, lasts, known, strict=True)
    ]
    return found, [size if size < last else None for size, last in zip(known, lasts, strict=True)]
