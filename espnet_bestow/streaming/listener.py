"""How a model hears audio that is still arriving.

A :class:`Listener` belongs to a model and is shared by all its sessions; an :class:`Ear` is one session's audio.
What is heard is a pure function of the audio and of how many frames are asked for, never of how the audio was cut
into pushes: everything else in streaming (chunk invariance, causality, exact latency) rests on that.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from espnet_bestow.errors import BadRowError, rows_among
from espnet_bestow.visibility import Chunks

RIGHT_CONTEXT = 13
"""Frames of look-ahead with which a bidirectional encoder is recomputed (1.04 s at 80 ms, as the authors do)."""


class Ear:
    """One session's audio, in a buffer that grows by doubling.

    Attributes:
        received: samples so far.
        ended: whether the audio is complete.
    """

    def __init__(self) -> None:
        self._buffer = np.empty(1 << 14, np.float32)  # sooner written and cut than a tensor
        self.received = 0
        self.ended = False

    def push(self, samples: np.ndarray) -> None:
        """Takes in the next samples (S,), float32 at the listener's rate."""
        if self.ended:
            raise ValueError(f"{len(samples)} samples pushed after the end of the audio")
        needed = self.received + len(samples)
        if needed > len(self._buffer):
            grown = np.empty(max(needed, 2 * len(self._buffer)), np.float32)
            grown[: self.received] = self._buffer[: self.received]
            self._buffer = grown
        self._buffer[self.received : needed] = samples
        self.received = needed

    def end(self) -> None:
        """No more samples will come."""
        self.ended = True

    def samples(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Samples (S,) from ``start`` to ``stop`` (default: all received); a view, valid until the next push."""
        stop = self.received if stop is None else stop
        if not 0 <= start <= stop <= self.received:
            raise ValueError(f"samples {start} to {stop} of {self.received} received")
        return torch.from_numpy(self._buffer[start:stop])


class Listener(ABC):
    """Base of all ways to encode audio that is still arriving.

    Args:
        sample_rate: what the model was trained on.
        hop: samples per encoder frame (1280 is 80 ms at 16 kHz).
    """

    ahead = 0
    """How many next requests of a session are best answered with the present one, if their audio has come."""

    chunks = Chunks()
    """Frames that come at once."""

    def __init__(self, sample_rate: int, hop: int):
        self.sample_rate = sample_rate
        self.hop = hop

    def open(self) -> Ear:
        """The ear of a new session."""
        return Ear()

    @abstractmethod
    def needed(self, frames: int) -> int:
        """Samples that must have arrived before the first ``frames`` frames may be shown, while the audio goes on."""

    @abstractmethod
    def hear(self, requests: Sequence[tuple[Ear, int]]) -> list[Tensor]:
        """The first ``frames`` frames of each ear, (F_i, D_enc); fewer only where the audio has ended.

        Args:
            requests: ears and how many frames of each; one encoder call serves all of them.

        Raises:
            BadRowError: one of the requests cannot be served.
        """

    def ready(self, ear: Ear, frames: int) -> bool:
        """Whether the first ``frames`` frames may be shown now."""
        return ear.ended or ear.received >= self.needed(frames)


class BeginningsListener(Listener):
    """BESTOW-S-bidi: an encoder is recomputed on the growing audio.

    To show F frames, exactly (F + right_context) * hop samples are encoded and the first F frames kept, so that a frame
    is always seen with the same look-ahead, however late it is asked for. Once too little audio is left for that, all
    of it is encoded.

    Args:
        sample_rate: what the model was trained on.
        hop: samples per encoder frame.
        right_context: frames encoded beyond those that are shown.
        shortest: samples below which audio has no frames at all (frontends fail on less).
    """

    ahead = 3
    """A small encoder takes hardly longer for a few beginnings than for one."""

    def __init__(self, sample_rate: int, hop: int, right_context: int, shortest: int):
        super().__init__(sample_rate, hop)
        if right_context < 0:
            raise ValueError(f"right_context={right_context} must be >= 0")
        self.right_context = right_context
        self.shortest = shortest

    def needed(self, frames: int) -> int:
        """See :class:`Listener`."""
        return max((frames + self.right_context) * self.hop, self.shortest if frames else 0)

    def hear(self, requests: Sequence[tuple[Ear, int]]) -> list[Tensor]:
        """See :class:`Listener`."""
        ends = [min(self.needed(frames), ear.received) for ear, frames in requests]
        rows = [row for row, end in enumerate(ends) if end >= self.shortest]
        out = [torch.zeros(0, 0) for _ in requests]
        if not rows:
            return out
        ears, asked = zip(*[requests[row] for row in rows], strict=True)
        with rows_among(rows):
            encoded = self.encode_beginnings(ears, [ends[row] for row in rows], asked)
        for row, frames in zip(rows, encoded, strict=True):
            ear, wanted = requests[row]
            if len(frames) < wanted and ear.received >= self.needed(wanted):
                raise BadRowError(
                    row,
                    f"the encoder made {len(frames)} frames of {ends[row]} samples, {wanted} were asked for; "
                    f"right_context={self.right_context} is too small for it, or hop={self.hop} wrong",
                )
            out[row] = frames[:wanted]
        return out

    @abstractmethod
    def encode_beginnings(self, ears: Sequence[Ear], ends: Sequence[int], wanted: Sequence[int]) -> Sequence[Tensor]:
        """The first ``ends`` samples of each ear, encoded in one call: (F_i, D_enc), or only the ``wanted`` of them."""


Encode = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""waveform (B, S), lengths (B,) -> the frames of each, (F_i, D_enc)."""


class RecomputedListener(BeginningsListener):
    """Computes everything on every beginning, whatever the encoder.

    Args:
        encode: features and encoder of the model, independent of padding and batch.
        sample_rate, hop, right_context, shortest: see :class:`BeginningsListener`.
    """

    def __init__(
        self,
        encode: Encode,
        sample_rate: int = 16000,
        hop: int = 1280,
        right_context: int = RIGHT_CONTEXT,
        shortest: int = 1600,
    ):
        super().__init__(sample_rate, hop, right_context, shortest)
        self.encode = encode

    def encode_beginnings(self, ears: Sequence[Ear], ends: Sequence[int], wanted: Sequence[int]) -> Sequence[Tensor]:
        """See :class:`BeginningsListener`."""
        waveform = torch.nn.utils.rnn.pad_sequence(
            [ear.samples(0, end) for ear, end in zip(ears, ends, strict=True)], batch_first=True
        )  # (B, S)
        return self.encode(waveform, torch.tensor(ends))


SPAN = 153600
"""Samples, of which every usual hop is a divisor: 2 ** 11 * 3 * 5 ** 2."""


def samples_per_frame(encode: Encode, sample_rate: int) -> int:
    """The hop of an encoder, measured: how many more samples give one more frame."""
    noise = 0.1 * torch.randn(1, sample_rate + SPAN, generator=torch.Generator().manual_seed(0))

    def frames(samples: int) -> int:
        return len(encode(noise[:, :samples], torch.tensor([samples]))[0])

    span, first = SPAN, frames(sample_rate)
    try:
        last = frames(sample_rate + span)
    except BadRowError:  # more than its window holds: small ones of Whisper's kind
        span //= 4
        last = frames(sample_rate + span)
    return round(span / (last - first))
