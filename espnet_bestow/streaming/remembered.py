"""BESTOW-S-bidi whose encoder is recomputed on the growing audio, but not the log-mel frames that it reads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from espnet_bestow.streaming.features import LogMel
from espnet_bestow.streaming.frame_ear import FrameEar
from espnet_bestow.streaming.listener import RIGHT_CONTEXT, Encode, RecomputedListener


class RememberingListener(RecomputedListener):
    """Hears what :class:`RecomputedListener` hears, and computes every log-mel frame once.

    Only the last two or three frames of what is encoded are computed for that one time: behind the audio stands
    silence, which their windows reach.

    Args:
        logmel: log-mel of any part of the audio.
        encode: what follows it in the model, independent of padding and batch: (B, T, 80), (B,) -> the frames of each.
        hop, right_context, shortest: see :class:`RecomputedListener`.
    """

    def __init__(
        self,
        logmel: LogMel,
        encode: Encode,
        hop: int = 1280,
        right_context: int = RIGHT_CONTEXT,
        shortest: int = 1600,
    ):
        super().__init__(encode, logmel.sample_rate, hop, right_context, shortest)
        self.logmel = logmel

    def open(self) -> FrameEar:
        """See :class:`Listener`; its frames are log-mel."""
        return FrameEar(self.logmel.bins)

    @torch.inference_mode()
    def encode_beginnings(self, ears: Sequence[Any], ends: Sequence[int]) -> Sequence[Tensor]:
        """See :class:`RecomputedListener`."""
        complete, lengths = ([of(end) for end in ends] for of in (self.logmel.complete, self.logmel.all))
        new: dict[Any, int] = {}  # ears, which may be in several rows, and how far their frames can be known
        for ear, until in zip(ears, complete, strict=True):
            if until > max(ear.heard, new.get(ear, 0)):
                new[ear] = until
        audio = [ear.samples() for ear in new] + [ear.samples(0, end) for ear, end in zip(ears, ends, strict=True)]
        frames = self.logmel.frames(audio, [*(ear.heard for ear in new), *complete], [*new.values(), *lengths])
        for ear, known in zip(new, frames, strict=False):
            ear.append(known)
        # What is known lies in the ears. One copy fills all rows: with each a call of its own, they would cost more.
        nothing = frames[0].new_zeros(max(lengths), self.logmel.bins)
        rows = [
            (ear.frames(begin), last, nothing[begin + len(last) :])
            for ear, begin, last in zip(ears, complete, frames[len(new) :], strict=True)
        ]
        feats = torch.cat([piece for row in rows for piece in row]).view(len(rows), *nothing.shape)  # (B, T, 80)
        return self.encode(feats, torch.tensor(lengths))
