"""One chunk of the cache-aware FastConformer for many streams at once, each at a position of its own.

The library streams too, but its cache belongs to one stream or to streams in step with each other, and it projects the
positions of the whole window again at every chunk. Here keys, values and the inputs of all convolutions are kept, and
what depends on the weights alone is computed once.

The sub-sampling does the same for all streams of a step, the first and last chunks included: the seven feature frames
before the first chunk and those after the end of the audio are zeros, and what the sub-sampling makes of them is put
back to zero after every stage, which is what padding is in the full pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bestow.encoders.causal_subsampling import NativeStages, Piece, Stages, subsampled
from espnet_bestow.encoders.chunk_block import ChunkBlock
from espnet_bestow.encoders.encoder_state import EncoderState, KeysValues
from espnet_bestow.ops import native

FACTOR = 8
"""Feature frames per encoder frame."""

LEAD = FACTOR - 1
"""Feature frames of a chunk before the one that its first frame ends with."""


class ChunkStep:
    """Encodes chunk by chunk what :class:`StreamingFastConformerEncoder` encodes at once.

    Args:
        encoder: the transformers encoder. Its weights are those of the moment: after training or moving it, make
            another ChunkStep.
        stages: its sub-sampling.
        context: (left, right) in frames.
    """

    def __init__(self, encoder: Any, stages: Stages | NativeStages, context: tuple[int, int]):
        self.left = context[0]
        self.chunk = context[1] + 1
        self.width = encoder.config.hidden_size
        self.scale = encoder.input_scale
        self.stages = stages
        with torch.inference_mode():
            window = torch.zeros(1, self.left + self.chunk, self.width, device=encoder.device, dtype=encoder.dtype)
            # Distances from left + chunk - 1 down to -(chunk - 1), (left + 2 chunk - 1, D).
            distances = encoder.encode_positions(window)[0, : self.left + 2 * self.chunk - 1]
            self.blocks = [ChunkBlock(block, distances, self.left, self.chunk) for block in encoder.layers]
            laid_out = [block.weights() for block in self.blocks]
        every = [weight for weights in laid_out if weights is not None for weight in weights]
        self._weights = None if None in laid_out else every
        # Room for several chunks: keys and values are copied once in so many steps.
        self.spare = max(self.left // 2, self.chunk)
        self._nothing = self._silence(window)

    @property
    def in_one_call(self) -> bool:
        """Whether the blocks of a chunk are one native call."""
        return self._weights is not None and native is not None

    def open(self) -> EncoderState:
        """The state of a stream that has heard nothing."""
        return self._nothing

    def features(self, start: int) -> tuple[int, int]:
        """First and past-the-last feature frame of the chunk at frame ``start``; the first may be negative."""
        return FACTOR * start - LEAD, FACTOR * (start + self.chunk) - LEAD

    def frames_of(self, features: int) -> int:
        """Encoder frames of audio with so many feature frames."""
        return subsampled(features) if features else 0

    @torch.inference_mode()
    def __call__(
        self, feats: Tensor, states: Sequence[EncoderState], ends: Sequence[int | None]
    ) -> tuple[Tensor, list[EncoderState]]:
        """The next chunk of every stream.

        Args:
            feats: (B, T, 80) feature frames, those of :meth:`features` that there are, and zeros behind them.
            states: of the B streams.
            ends: feature frames of the whole audio where it has ended, else None.

        Returns:
            frames (B, chunk, D), of which those after the end mean nothing, and the new states.
        """
        starts = [state.start for state in states]
        pieces = [Piece(start, self.chunk, end) for start, end in zip(starts, ends, strict=True)]
        x, past = self.stages.advance(feats, torch.stack([state.past for state in states]), pieces)
        memories = [state.with_room(self.left, self.chunk, self.spare) for state in states]
        # What each chunk attends to: all that is left of the past, the chunk, and nothing behind the end.
        kept = [min(self.left, end) for _, end in memories]
        windows = [
            memory.frames[:, end - before : end + self.chunk]
            for (memory, end), before in zip(memories, kept, strict=True)
        ]
        seen = [
            before + self.chunk if last is None else max(min(before + self.chunk, subsampled(last) - start + before), 1)
            for before, start, last in zip(kept, starts, ends, strict=True)
        ]
        encode = self._encode_block_by_block if self._weights is None or native is None else self._encode
        x, convolved = encode(x * self.scale, windows, seen, [state.convolved for state in states])
        after = []
        for start, (memory, end), inputs, of_convolutions in zip(starts, memories, past, convolved, strict=True):
            memory.filled = end + self.chunk
            after.append(EncoderState(start + self.chunk, inputs.clone(), of_convolutions, memory, memory.filled))
        return x, after

    def _silence(self, like: Tensor) -> EncoderState:
        """What a stream remembers before it has heard anything."""
        convolved = like.new_zeros(len(self.blocks), self.blocks[0].kernel - 1, self.width)
        memory = KeysValues(like.new_zeros(len(self.blocks), 0, 2 * self.width), 0)
        return EncoderState(0, like.new_zeros(self.stages.remembered), convolved, memory, 0)

    def _encode(
        self, x: Tensor, windows: list[Tensor], seen: list[int], past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """All blocks in one native call.

        Args:
            x: (B, chunk, D).
            windows: per stream (blocks, n, 2 D) keys and values; those of the chunk, the last ones, are written.
            seen: how many of these n the stream's frames attend to.
            past: per stream (blocks, kernel - 1, D), the last inputs of the convolutions.

        Returns:
            (B, chunk, D) and past afterwards.
        """
        assert native is not None and self._weights is not None
        block, size = self.blocks[0], self.left + self.chunk
        after = [torch.empty_like(each) for each in past]
        y = native.conformer_chunk(
            x.flatten(0, 1), torch.tensor([self.chunk] * len(x)), self._weights, windows, torch.tensor(seen), past,
            after, block.heads, size, block.relative.shape[2], block.block.norm_out.eps, block.scaling,
        )  # fmt: skip
        return y.view(x.shape), after

    def _encode_block_by_block(
        self, x: Tensor, windows: list[Tensor], seen: list[int], past: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """See :meth:`_encode`."""
        size = self.left + self.chunk
        lengths = [window.shape[1] for window in windows]
        shared = torch.stack([F.pad(w, (0, 0, size - n, 0)) for w, n in zip(windows, lengths, strict=True)], 1)
        first = torch.tensor([size - n for n in lengths], device=x.device)  # (B,)
        column = torch.arange(size, device=x.device) - first[:, None]  # (B, left + chunk)
        outside = (column < 0) | (column >= torch.tensor(seen, device=x.device)[:, None])
        mask = torch.zeros_like(outside, dtype=x.dtype).masked_fill(outside, -torch.inf)[:, None, None]
        kept = []
        for number, block in enumerate(self.blocks):
            x, inputs = block(x, shared[number], torch.stack([each[number] for each in past]), mask)
            kept.append(inputs)
        for window, every in zip(windows, shared.unbind(1), strict=True):
            window[:, -self.chunk :] = every[:, -self.chunk :]
        return x, [each.clone() for each in torch.stack(kept, 1)]
