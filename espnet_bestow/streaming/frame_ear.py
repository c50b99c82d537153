"""The ear of encoders that encode every sample once: audio, and the frames made of it so far."""

import torch
from torch import Tensor

from espnet_bestow.streaming.listener import Ear


class FrameEar(Ear):
    """Audio of one session, with its encoded frames in a buffer that grows by doubling.

    Args:
        width: D_enc.
    """

    def __init__(self, width: int):
        super().__init__()
        self.heard = 0  # frames so far
        self._frames = torch.zeros(0, width)  # (at least heard, D_enc)

    def append(self, frames: Tensor) -> None:
        """The next frames (n, D_enc)."""
        after = self.heard + len(frames)
        if after > len(self._frames):
            grown = frames.new_empty(max(after, 2 * len(self._frames)), frames.shape[1])
            grown[: self.heard] = self._frames[: self.heard]
            self._frames = grown
        self._frames[self.heard : after] = frames
        self.heard = after

    def frames(self, count: int) -> Tensor:
        """The first ``count`` frames, or all if there are fewer; a view of what never changes."""
        return self._frames[: min(count, self.heard)]
