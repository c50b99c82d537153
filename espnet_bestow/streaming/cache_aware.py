"""BESTOW-S-unid: the cache-aware FastConformer hears every sample once."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espnet_bestow.encoders.chunk_step import FACTOR, ChunkStep
from espnet_bestow.streaming.features import Span, StreamFeatures
from espnet_bestow.streaming.frame_ear import FrameEar
from espnet_bestow.streaming.listener import Ear, Listener
from espnet_bestow.streaming.subsampled import under
from espnet_bestow.visibility import Chunks


class CacheAwareEar(FrameEar):
    """Audio of one session, and how far it has been encoded."""

    def __init__(self, step: ChunkStep, features: StreamFeatures):
        super().__init__(step.width)
        self.encoder = step.open()
        self.features_past = features.open()


class CacheAwareListener(Listener):
    """Encodes a chunk as soon as its last window of audio is complete; what has been encoded never changes.

    Args:
        step: the encoder, chunk by chunk.
        features: the features, span by span.
    """

    def __init__(self, step: ChunkStep, features: StreamFeatures):
        super().__init__(features.sample_rate, FACTOR * features.hop)
        self.step = step
        self.features = features
        self.chunks = Chunks(step.chunk)

    @classmethod
    def of(cls, model: nn.Module, context: Sequence[int] | None = None) -> "CacheAwareListener":
        """The listener of a model, with its weights as they are now.

        Args:
            model: has `features`, and an `encoder` with chunk_step (streaming_fastconformer).
            context: [left, right] in frames; by default that of the encoder in evaluation.
        """
        encoder: Any = model.encoder
        if not hasattr(encoder, "chunk_step"):
            raise ValueError(f"encoder {type(encoder).__name__} is not cache-aware; streaming_fastconformer is")
        return cls(encoder.chunk_step(context), StreamFeatures(model.features))  # type: ignore[arg-type]

    def open(self) -> CacheAwareEar:
        """See :class:`Listener`."""
        return CacheAwareEar(self.step, self.features)

    def needed(self, frames: int) -> int:
        """See :class:`Listener`."""
        last = self.chunks.whole(frames) - self.step.chunk
        return self.features.needed(self.step.features(last)[1]) if last >= 0 else 0

    @torch.inference_mode()
    def hear(self, requests: Sequence[tuple[Ear, int]]) -> list[Tensor]:
        """See :class:`Listener`."""
        for ear, frames in requests:
            if not self.ready(ear, frames):
                raise ValueError(f"{frames} frames need {self.needed(frames)} samples, {ear.received} have arrived")
        while waiting := [ear for ear, frames in requests if self._can_advance(ear, frames)]:
            self._advance(waiting)
        return [ear.frames(frames) for ear, frames in requests]  # type: ignore[attr-defined]

    def _can_advance(self, ear: Any, frames: int) -> bool:
        if ear.heard >= frames:
            return False
        return not ear.ended or ear.heard < self.step.frames_of(self.features.available(ear))

    def _advance(self, ears: Sequence[Any]) -> None:
        """The next chunk of each."""
        spans = [Span(ear, ear.heard, ear.heard + self.step.chunk, ear.features_past) for ear in ears]
        known, ends = under(self.features, spans)
        x, pasts = self.features(known)
        frames, states = self.step(x, [ear.encoder for ear in ears], ends)
        for row, ear in enumerate(ears):
            ear.encoder, ear.features_past = states[row], pasts[row]
            end = ends[row]
            new = self.step.chunk if end is None else self.step.frames_of(end) - ear.heard
            ear.append(frames[row, :new])
