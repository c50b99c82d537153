"""What streams remember of the cache-aware FastConformer between two chunks, in batches that stay together.

Streams that advance together keep their memory in one batch: nothing is gathered or split as long as all of them take
every step. When some go on without the others, they form a new batch, and each of the others gets a copy of its own, so
that no stream keeps the memory of another alive.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor


class KeysValues:
    """Keys and values of one batch, per block (B, N, 2 D); frames are appended in place while there is room.

    Args:
        buffers: per block, (B, left + spare, 2 D).
        filled: frames in them so far.
    """

    def __init__(self, buffers: list[Tensor], filled: int):
        self.buffers = buffers
        self.filled = filled


class Batch:
    """The memory of B streams after the same step.

    Args:
        past: per stage of the sub-sampling, the last frames of its input (B, C, past, ...).
        convolved: per block, the last inputs of its convolution (B, kernel - 1, D).
        keys_values: may go on after this step.
        end: frames of them that belong to this step.
    """

    def __init__(self, past: list[Tensor], convolved: list[Tensor], keys_values: KeysValues, end: int):
        self.past = past
        self.convolved = convolved
        self.keys_values = keys_values
        self.end = end
        self.size = len(convolved[0])
        self.members: weakref.WeakSet[EncoderState] = weakref.WeakSet()

    def window(self, block: int, left: int) -> Tensor:
        """The last ``left`` keys and values (B, left, 2 D)."""
        return self.keys_values.buffers[block][:, self.end - left : self.end]


class EncoderState:
    """What one stream remembers; a step gives a new one and leaves the old one as good as before.

    Args:
        start: frames encoded so far.
        batch: where its memory is.
        row: which row of it.
    """

    def __init__(self, start: int, batch: Batch, row: int):
        self.start = start
        self.batch = batch
        self.row = row
        batch.members.add(self)


def room(windows: Sequence[Tensor], spare: int) -> KeysValues:
    """A copy of windows (B, left, 2 D), with room for ``spare`` frames more."""
    left = windows[0].shape[1]
    buffers = [window.new_empty(window.shape[0], left + spare, window.shape[2]) for window in windows]
    for buffer, window in zip(buffers, windows, strict=True):
        buffer[:, :left] = window
    return KeysValues(buffers, left)


def together(states: Sequence[EncoderState], left: int, spare: int) -> Batch:
    """The batch whose rows are these states, in their order: their own if it is theirs alone, else a new one."""
    batch = states[0].batch
    if len(states) == batch.size and all(s.batch is batch and s.row == row for row, s in enumerate(states)):
        return batch
    taken = set(states)
    for broken in {state.batch for state in states}:
        for member in list(broken.members):
            if member not in taken and broken.size > 1:
                _leave(member, left, spare)
    return _gather(states, left, spare)


def _leave(state: EncoderState, left: int, spare: int) -> None:
    """Gives a stream a copy of its row."""
    state.batch.members.discard(state)
    state.batch, state.row = _gather([state], left, spare), 0
    state.batch.members.add(state)


def _gather(states: Sequence[EncoderState], left: int, spare: int) -> Batch:
    batches = [state.batch for state in states]
    index = torch.tensor([state.row for state in states], device=batches[0].convolved[0].device)

    def rows(every: Sequence[Tensor]) -> Tensor:
        """The states' rows of a tensor that each of their batches has."""
        if all(batch is batches[0] for batch in batches):
            return every[0].index_select(0, index)
        return torch.cat([each[state.row : state.row + 1] for each, state in zip(every, states, strict=True)])

    past = [rows(every) for every in zip(*[batch.past for batch in batches], strict=True)]
    convolved = [rows(every) for every in zip(*[batch.convolved for batch in batches], strict=True)]
    windows = [rows([batch.window(block, left) for batch in batches]) for block in range(len(convolved))]
    return Batch(past, convolved, room(windows, spare), left)
