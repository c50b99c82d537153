"""What the connectors remember while sessions stream: text caches with a seat per session, speech as frames.

Frames instead of projected keys and values: the projections of speech are linear, so they can be *absorbed* into
queries and outputs. With keys W_k x + b_k and values W_v x + b_v of a head,

    softmax_f(q . (W_k x_f + b_k)) = softmax_f((W_k^T q) . x_f)          the key bias moves all scores alike
    sum_f p_f (W_v x_f + b_v)      = W_v (sum_f p_f x_f) + b_v           the weights sum to 1

One buffer of frames then serves all blocks, and an encoder that recomputes all its frames costs the connector nothing.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espnet_bestow.connectors.attention import CrossAttention, KeysValues
from espnet_bestow.ops import staircase_attention, staircase_weights
from espnet_bestow.seats import Placement, SeatBuffer

if TYPE_CHECKING:
    from espnet_bestow.connectors.token_step import ConnectorToken


class SeatedFrames:
    """The encoder frames that every session may see.

    Args:
        width: D_enc.
    """

    def __init__(self, width: int):
        self.width = width
        self.buffer = SeatBuffer()
        self.lengths: dict[int, int] = {}
        self._at: Placement | None = None  # of the present call
        self._now: Tensor | None = None

    @property
    def now(self) -> Tensor:
        """(B, F, D_enc), of the seats of the present call: gathered once for all blocks, when the first asks."""
        if self._now is None:
            self._now = self._gathered()
        return self._now

    def put(self, seat: int, frames: Tensor) -> None:
        """All frames (F, D_enc) of a seat."""
        self.lengths[seat] = len(frames)
        if len(frames):
            self.buffer.put(seat, frames)

    def sit(self, at: Placement) -> None:
        """The next call is for these seats."""
        self._at, self._now = at, None

    def sit_with_spare(self, at: Placement) -> None:
        """The same with all slots that there are, so that the shape stays as long as the buffer does."""
        self._at = at
        self._now = self._gathered(0 if self.buffer.data is None else self.buffer.data.shape[1])

    def _gathered(self, frames: int | None = None) -> Tensor:
        """Of each seat so many, by default as many as the seats have."""
        at = self._at
        if at is None:
            return torch.zeros(0, 0, self.width)
        if frames is None:
            frames = max(self.lengths.get(seat, 0) for seat in at.seats)
        if frames == 0:
            return torch.zeros(len(at.seats), 0, self.width, device=at.rows.device)
        self.buffer.cover(at)
        return self.buffer.read(replace(at, total=frames))


class AbsorbedSpeech:
    """A cross-attention's view of encoder frames, its own linear layers absorbed.

    Args:
        attention: whose key and value projections.
        inputs: the linear layers between encoder and ``attention``, in order; there may be none.
        frames: what is heard.
    """

    def __init__(self, attention: CrossAttention, inputs: Sequence[nn.Linear], frames: SeatedFrames):
        weight = torch.eye(frames.width).to(attention.key.weight)
        bias = weight.new_zeros(frames.width)
        for linear in inputs:
            weight, bias = linear.weight @ weight, linear(bias)
        heads = (attention.num_heads, -1)
        self.key = (attention.key.weight @ weight).unflatten(0, heads).mT.contiguous().detach()  # (H, D_enc, D)
        self.value = (attention.value.weight @ weight).unflatten(0, heads).contiguous().detach()  # (H, D, D_enc)
        self.value_bias = attention.value(bias).unflatten(0, heads).detach()  # (H, D)
        self.frames = frames
        # Of the present call:
        self.query = self.key.new_zeros(0, len(self.key), 0, frames.width)  # (B, H, U, D_enc)
        self.visible = torch.zeros(0, 0, dtype=torch.int32)  # (B, U)

    @property
    def scale(self) -> float:
        """As of the attention over projected keys: that of the head's width D."""
        return float(self.key.shape[2] ** -0.5)

    def attend(self, q: Tensor, visible: Tensor) -> Tensor:
        """q (B, H, U, D), visible (B, U) -> (B, H, U, D)."""
        self.query, self.visible = q @ self.key.mT, visible
        heads = q.shape[1]
        memory = self.frames.now[:, None]  # (B, 1, F, D_enc)
        # Heads become rows, so that no head needs its own copy of the frames.
        rows = self.query.flatten(1, 2)[:, None].to(memory.dtype)  # (B, 1, H*U, D_enc)
        mean = staircase_attention(rows, memory, memory, visible.repeat(1, heads), self.scale)
        out = mean[:, 0].unflatten(1, (heads, -1)) @ self.value.mT
        # Who sees nothing stays at exactly 0, without the bias.
        return out + self.value_bias[:, None] * (visible > 0)[:, None, :, None]

    def weights(self) -> Tensor:
        """Mean over heads of how the last position attended: (B, F)."""
        memory = self.frames.now[:, None]
        last = self.query[:, :, -1].unsqueeze(1).to(memory.dtype)  # (B, 1, H, D_enc)
        visible = self.visible[:, -1:].expand(-1, last.shape[2])
        return staircase_weights(last, memory, visible.contiguous(), self.scale)[:, 0].mean(1)


class SeatedKeysValues:
    """Keys and values of one self-attention layer, a row per seat."""

    def __init__(self) -> None:
        self.keys = SeatBuffer()
        self.values = SeatBuffer()
        self.at: Placement | None = None

    def extend(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Puts U new positions (B, H, U, D) in their slots; all that these seats hold, (B, H, N, D)."""
        assert self.at is not None
        grown = [
            buffer.write(self.at, new.transpose(1, 2)).transpose(1, 2)
            for buffer, new in ((self.keys, keys), (self.values, values))
        ]
        return KeysValues(*grown)


class _Seated:
    """What the states below share: frames, and how the last call attended to them."""

    def __init__(self, frames: SeatedFrames, speech: Sequence[AbsorbedSpeech]):
        self.frames = frames
        self._speech = speech

    def hear(self, seat: int, frames: Tensor) -> None:
        """See SeatedState."""
        self.frames.put(seat, frames)

    def leave(self, seat: int) -> None:
        """See SeatedState."""
        self.frames.lengths.pop(seat, None)

    def attention(self, block: int = -1) -> Tensor:
        """See SeatedState."""
        return self._speech[block].weights()


class SeatedCrossAttentionState(_Seated):
    """The cross-attention connector's.

    Args:
        frames: what is heard.
        speech: each block's view of it.
        text: each block's self-attention cache.
        token: the step of one token in one call, where it can be had.
    """

    def __init__(
        self,
        frames: SeatedFrames,
        speech: Sequence[AbsorbedSpeech],
        text: Sequence[SeatedKeysValues],
        token: "ConnectorToken | None" = None,
    ):
        super().__init__(frames, speech)
        self.speech, self.text, self.token = speech, text, token
        self.at: Placement | None = None
        self.looked: Tensor | None = None  # (X, B, F) how the blocks looked at the frames, where `token` has said it

    def attention(self, block: int = -1) -> Tensor:
        """See SeatedState."""
        return super().attention(block) if self.looked is None else self.looked[block]

    def sit(self, at: Placement) -> None:
        """See SeatedState."""
        self.frames.sit(at)
        self._seat_text(at)

    def sit_with_spare(self, at: Placement) -> None:
        """:meth:`sit` with all slots that the buffers have, so that shapes stay as long as the buffers do."""
        self.frames.sit_with_spare(at)
        slots = [buffer.data.shape[1] for buffer in self.text_buffers if buffer.data is not None]
        self._seat_text(replace(at, total=min(slots, default=at.total), single=None))

    def _seat_text(self, at: Placement) -> None:
        for cache in self.text:
            cache.at = at
        self.at, self.looked = at, None

    @property
    def text_buffers(self) -> list[SeatBuffer]:
        """Keys and values of each block."""
        return [buffer for cache in self.text for buffer in (cache.keys, cache.values)]

    def share(self, seat: int, others: Sequence[int], slots: int) -> None:
        """See SeatedState."""
        for buffer in self.text_buffers:
            buffer.share(seat, others, slots)

    def reserve(self, at: Placement) -> tuple[int, ...]:
        """Makes room for the new positions; where the memory of all buffers is from now on."""
        for buffer in self.text_buffers:
            buffer.cover(at, at.total)
        self.frames.buffer.cover(at)
        buffers = self.frames.buffer, *self.text_buffers
        return tuple(buffer.data.data_ptr() for buffer in buffers if buffer.data is not None)

    def enter(self, mask: Tensor) -> Tensor | None:
        """Which slots the new positions, mask (B, U), may attend to: (B, U, N) bool, or None for all."""
        assert self.at is not None
        return self.at.allowed

    def keep(self, block: int, grown: object) -> None:
        """Seats keep what was written to them."""


class SeatedSpeechState(_Seated):
    """Of a connector that keeps nothing of the text.

    Args:
        frames: what is heard.
        speech: each layer's view of it.
    """

    def __init__(self, frames: SeatedFrames, speech: Sequence[AbsorbedSpeech]):
        super().__init__(frames, speech)
        self.speech = speech

    def sit(self, at: Placement) -> None:
        """See SeatedState."""
        self.frames.sit(at)

    def share(self, seat: int, others: Sequence[int], slots: int) -> None:
        """See SeatedState."""


class SeatedRecurrentState(_Seated):
    """The recurrent connector's: the hidden state after every position, so that tokens can be taken back.

    Args:
        frames: what is heard.
        speech: the cross-attention's view of it.
        start: (layers, D) hidden state before the first position.
    """

    def __init__(self, frames: SeatedFrames, speech: AbsorbedSpeech, start: Tensor):
        super().__init__(frames, [speech])
        self.speech = speech
        self.start = start
        self.history = SeatBuffer()  # (R, N, layers, D)
        self.at: Placement | None = None
        self._last = torch.zeros(0, dtype=torch.long)  # (B,) slot of the last real position of the present call

    def sit(self, at: Placement) -> None:
        """See SeatedState."""
        self.frames.sit(at)
        self.at = at

    def share(self, seat: int, others: Sequence[int], slots: int) -> None:
        """See SeatedState."""
        self.history.share(seat, others, slots)

    def enter(self, mask: Tensor) -> None:
        """The new positions, mask (B, U)."""
        assert self.at is not None
        self._last = self.at.slots.min(1).values + mask.sum(1) - 1

    @property
    def hidden(self) -> Tensor:
        """(layers, B, D) after the last position that counts."""
        assert self.at is not None
        before = self.at.slots.min(1).values - 1  # (B,)
        first = self.start[:, None].expand(-1, len(before), -1)
        if self.history.data is None or int(before.max()) < 0:
            return first.contiguous()
        self.history.cover(self.at)
        past = self.history.data[self.at.rows, before.clamp(min=0)].transpose(0, 1)
        return torch.where((before >= 0)[None, :, None], past, first).contiguous()

    @hidden.setter
    def hidden(self, after: Tensor) -> None:
        assert self.at is not None
        self.history.write(replace(self.at, slots=self._last[:, None]), after.transpose(0, 1)[:, None])
