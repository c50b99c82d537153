"""BESTOW-S-bidi whose encoder is recomputed on the growing audio, but not what it reads before it looks ahead."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from espnet_bestow.streaming.features import LogMel, Span
from espnet_bestow.streaming.frame_ear import FrameEar
from espnet_bestow.streaming.listener import RIGHT_CONTEXT, BeginningsListener
from espnet_bestow.streaming.subsampled import Subsampled

Front = LogMel | Subsampled
"""What makes frames that depend on the audio before them, and on little after it."""


EncodeFrames = Callable[[Tensor, Tensor, Tensor], Sequence[Tensor]]
"""A front's frames (R, W) of some recordings, one after the other, how many of each (B,), how many of the encoder's are
wanted (B,) -> the frames of each, or only these."""


class RememberingEar(FrameEar):
    """Audio of one session, and the frames that a front has made of it."""

    def __init__(self, front: Front):
        super().__init__(front.width)
        self.past = front.open()


class RememberingListener(BeginningsListener):
    """Hears what :class:`RecomputedListener` hears, and computes every frame of a front once.

    Only the last few frames of what is encoded are computed for that one time: behind the audio stands silence, which
    they reach.

    Args:
        front: what need not be recomputed.
        encode: what follows it in the model, independent of batch.
        hop, right_context, shortest: see :class:`BeginningsListener`.
    """

    def __init__(
        self,
        front: Front,
        encode: EncodeFrames,
        hop: int = 1280,
        right_context: int = RIGHT_CONTEXT,
        shortest: int = 1600,
    ):
        super().__init__(front.sample_rate, hop, right_context, shortest)
        self.front, self.encode = front, encode

    def open(self) -> RememberingEar:
        """See :class:`Listener`."""
        return RememberingEar(self.front)

    @torch.inference_mode()
    def encode_beginnings(self, ears: Sequence[Any], ends: Sequence[int], wanted: Sequence[int]) -> Sequence[Tensor]:
        """See :class:`BeginningsListener`."""
        self._remember(ears, ends)
        spans = [self._rest(ear, end) for ear, end in zip(ears, ends, strict=True)]
        last, _ = self.front(spans)
        pieces = []
        for (ear, begin, until, *_), row in zip(spans, last, strict=True):
            if begin > 0:  # an ear that remembers nothing does not know yet where the front computes
                pieces.append(ear.frames(begin))  # type: ignore[attr-defined]
            pieces.append(row[: until - begin])
        counts = [span.last for span in spans]
        asked = [max(min(count, most), 1) for count, most in zip(counts, wanted, strict=True)]
        return self.encode(torch.cat(pieces), torch.tensor(counts), torch.tensor(asked))

    def _rest(self, ear: Any, end: int) -> Span:
        """What follows the frames that the ear remembers, if its first ``end`` samples are a recording."""
        if ear.heard <= self.front.complete(end):
            return Span(ear, ear.heard, self.front.all(end), ear.past, end)
        return Span(ear, 0, self.front.all(end), self.front.open(), end)  # whoever goes back begins anew

    def _remember(self, ears: Sequence[Any], ends: Sequence[int]) -> None:
        """What is certain in the shortest beginning of each ear, unless nothing is asked for after this."""
        known: dict[Any, int] = {}
        for ear, end in zip(ears, ends, strict=True):
            if not ear.ended or end < ear.received:
                certain = self.front.complete(end)
                known[ear] = min(certain, known.get(ear, certain))
        spans = [Span(ear, ear.heard, until, ear.past) for ear, until in known.items() if until > ear.heard]
        if spans:
            frames, pasts = self.front(spans)
            for span, row, past in zip(spans, frames, pasts, strict=True):
                span.ear.append(row[: span.last - span.first])  # type: ignore[attr-defined]
                span.ear.past = past  # type: ignore[attr-defined]
