"""What a stream remembers of the cache-aware FastConformer between two chunks.

Every stream has memory of its own, so that streams can advance with any others or alone, and none keeps the memory of
another alive. It holds what was heard and nothing else: a stream that has just begun attends to few frames.
"""

from dataclasses import dataclass

from torch import Tensor


class KeysValues:
    """Keys and values of one stream (blocks, room, 2 D); frames are appended in place while there is room.

    Args:
        frames: with room for more.
        filled: how many are in it so far.
    """

    def __init__(self, frames: Tensor, filled: int):
        self.frames = frames
        self.filled = filled

    def copy(self, first: int, last: int, room: int) -> "KeysValues":
        """Some of the frames, with room for more."""
        kept = last - first
        frames = self.frames.new_empty(self.frames.shape[0], kept + room, self.frames.shape[2])
        frames[:, :kept] = self.frames[:, first:last]
        return KeysValues(frames, kept)


@dataclass(frozen=True)
class EncoderState:
    """What one stream remembers; a step gives a new one and leaves the old one as good as before."""

    start: int  # frames encoded so far
    past: Tensor  # (n,) the last inputs of the sub-sampling's stages, one after the other
    convolved: Tensor  # (blocks, kernel - 1, D) the last inputs of the convolutions
    keys_values: KeysValues  # may go on after this step
    end: int  # frames of them until this step, `left` of them or all there were

    def with_room(self, left: int, chunk: int, spare: int) -> tuple[KeysValues, int]:
        """Where the next chunk's keys and values can be appended, and how many frames are there before them.

        Args:
            left: frames of the past that are attended to.
            chunk: frames that will be appended.
            spare: room to make where they do not fit, or where the memory has gone on already.
        """
        memory = self.keys_values
        if memory.filled == self.end and self.end + chunk <= memory.frames.shape[1]:
            return memory, self.end
        kept = min(left, self.end)
        return memory.copy(self.end - kept, self.end, max(spare, chunk)), kept
