"""ESPnet's contextual block encoders in their own chunk mode.

Blocks of ``block_size`` frames, ``hop_size`` apart, of which the middle is kept; a context vector is handed from block
to block. What ESPnet's chunk mode cannot do: it takes one stream at a time, so sessions are encoded one after the
other, and ``input_layer: linear`` (behind a pre-encoder) repeats a frame at every call, so it is refused here.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from espnet_bestow.encoders.chunks import blocks_of
from espnet_bestow.streaming.features import Span, StreamFeatures
from espnet_bestow.streaming.frame_ear import FrameEar
from espnet_bestow.streaming.listener import Ear, Listener

SHORTEST = {4: 7, 6: 11, 8: 15}
"""Feature frames that each of ESPnet's sub-samplings, by its factor, makes its first frame of."""


class BlockEar(FrameEar):
    """Audio of one session, and how far it has been encoded."""

    def __init__(self, width: int, features: StreamFeatures):
        super().__init__(width)
        self.features_past = features.open()
        self.fed = 0  # feature frames that the encoder has taken
        self.state: dict[str, Any] | None = None
        self.complete = False


class ChunkedListener(Listener):
    """Feeds a contextual block encoder exactly what its next block waits for, so that pushes leave no trace.

    Args:
        encoder: contextual_block_conformer or contextual_block_transformer.
        features: the features, span by span.
    """

    def __init__(self, encoder: Any, features: StreamFeatures):
        self.encoder = encoder
        name = type(encoder).__name__
        if not hasattr(encoder, "forward_infer"):
            raise ValueError(f"encoder {name} has no chunk mode; ESPnet's contextual block encoders have")
        if self.encoder.subsample not in SHORTEST:
            raise ValueError(f"{name}: input_layer of factor {self.encoder.subsample} cannot stream; conv2d can")
        if self.encoder.block_size <= 0:
            raise ValueError(f"{name}: block_size={self.encoder.block_size} means one block, which cannot stream")
        super().__init__(features.sample_rate, self.encoder.subsample * features.hop)
        self.features = features
        self.chunks = blocks_of(encoder)

    @classmethod
    def of(cls, model: nn.Module) -> "ChunkedListener":
        """The listener of a model with such an encoder."""
        return cls(model.encoder, StreamFeatures(model.features))  # type: ignore[arg-type]

    def open(self) -> BlockEar:
        """See :class:`Listener`."""
        return BlockEar(self.encoder.output_size(), self.features)

    def needed(self, frames: int) -> int:
        """See :class:`Listener`."""
        return self.features.needed(self._features_for(self._blocks(frames))) if frames > 0 else 0

    @torch.inference_mode()
    def hear(self, requests: Sequence[tuple[Ear, int]]) -> list[Tensor]:
        """See :class:`Listener`."""
        out = []
        for ear, frames in requests:
            if not self.ready(ear, frames):
                raise ValueError(f"{frames} frames need {self.needed(frames)} samples, {ear.received} have arrived")
            assert isinstance(ear, BlockEar)
            while ear.heard < frames and not ear.complete:
                self._advance(ear)
            out.append(ear.frames(frames))
        return out

    def _blocks(self, frames: int) -> int:
        """Blocks that the first ``frames`` frames, at least 1, are spread over."""
        return (self.chunks.whole(frames) - self.chunks.lead) // self.chunks.size

    def _features_for(self, blocks: int) -> int:
        # ESPnet waits for one frame more than a block, and its sub-sampling holds two back.
        return self.encoder.subsample * (self.encoder.block_size + 3 + (blocks - 1) * self.encoder.hop_size)

    def _advance(self, ear: BlockEar) -> None:
        """The next block, or what is left at the end of the audio."""
        available = self.features.available(ear)
        last = self._features_for(self._blocks(ear.heard + 1))
        if last > available or (ear.ended and last == available):
            last, ear.complete = available, True
        if last < SHORTEST[self.encoder.subsample]:
            return
        if last > ear.fed:
            (feats,), (ear.features_past,) = self.features([Span(ear, ear.fed, last, ear.features_past)])
        else:
            feats = torch.zeros(0, self.features.bins)
        feats = feats[None]  # (1, T, 80)
        lengths = torch.tensor([feats.shape[1]], device=feats.device)
        frames, _, ear.state = self.encoder(feats, lengths, ear.state, is_final=ear.complete, infer_mode=True)
        ear.fed = last
        ear.append(frames[0])
