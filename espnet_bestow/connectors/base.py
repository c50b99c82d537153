"""The one question every connector answers: given text embeddings and speech, what does the LLM get as input?"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from espnet_bestow.seats import Placement


@dataclass(frozen=True)
class Speech:
    """What the encoder made of a batch of utterances."""

    frames: Tensor  # (B, F, D_enc)
    lengths: Tensor  # (B,) true frames of each utterance; the rest is padding

    def before(self, frame: int | None) -> "Speech":
        """What comes before a frame (None: all)."""
        return self if frame is None else Speech(self.frames[:, :frame], self.lengths.clamp(max=frame))

    def select(self, rows: Tensor | Sequence[int]) -> "Speech":
        """These utterances, in this order."""
        return Speech(self.frames[rows], self.lengths[rows])

    def rows(self) -> list[Tensor]:
        """The frames of each utterance without padding, (F_i, D_enc)."""
        return [frames[:length] for frames, length in zip(self.frames, self.lengths.tolist(), strict=True)]


@dataclass(frozen=True)
class LLMInput:
    """Input of the LLM for N new positions, N >= U; the last U of them are the text positions, in order.

    Cross-attention answers with N = U. Connectors that put speech into the sequence answer with N = F' + U on their
    first call. Loss and decoding look at the last U positions only, so they need not know which connector is in use.
    """

    embeddings: Tensor  # (B, N, D_llm)
    mask: Tensor  # (B, N) bool, true at real positions
    readers: Mapping[int, Callable[[Tensor], Tensor]] = field(default_factory=dict)
    """What hidden states (B, N, D_llm) go through before the layers of these numbers, to read the speech."""


class ConnectorState(Protocol):
    """What a connector remembers between calls: speech projected once, and its own text caches."""

    def select(self, rows: Tensor) -> "ConnectorState":
        """The text rows ``rows`` (B',), each as often as it is named (beams).

        Rows about one utterance may share its speech, so a row may only move within its own.
        """
        ...


class SeatedState(Protocol):
    """The state of many streaming sessions (:mod:`espnet_bestow.seats`); speech is kept as encoder frames."""

    def hear(self, seat: int, frames: Tensor) -> None:
        """All that a session may see from now on: frames (F, D_enc), replacing what it saw before."""
        ...

    def sit(self, at: Placement) -> None:
        """The next call is for these seats."""
        ...

    def attention(self, block: int = -1) -> Tensor:
        """How the last text position of the last call attended to speech: (B, F), mean over heads of a block."""
        ...

    def share(self, seat: int, others: Sequence[int], slots: int) -> None:
        """The first text positions of ``others`` become those of ``seat``."""
        ...

    def leave(self, seat: int) -> None:
        """The session of this seat is gone."""
        ...


class Connector(nn.Module, ABC):
    """Base class of what a YAML names under ``connector``.

    A full teacher-forced pass is one call with a fresh state; step-by-step decoding is many calls with the same
    state. There is no second code path, which is why both give the same numbers.

    Constructors take ``text_dim`` (D_llm) and ``speech_dim`` (D_enc) first, then their own options.
    """

    hears_all = False
    """Whether every text position sees all of the speech, whatever is visible: only offline models have such a one."""

    reads_in_llm = False
    """Whether the LLM's layers read the speech, so that where a token looks is known only when the LLM has run."""

    attends = False
    """Whether its states have ``watch()``: attention to speech that training can teach (:mod:`..alignment`)."""

    @classmethod
    def beside(cls, text_dim: int, text_layers: int, speech_dim: int, **options: Any) -> "Connector":
        """One for an LLM of so many layers, which hardly any connector has to know."""
        return cls(text_dim, speech_dim, **options)

    def positions(self, frames: int) -> int:
        """How many of the LLM's positions speech of so many frames takes, before the text."""
        return 0

    @abstractmethod
    def start(self, speech: Speech) -> ConnectorState:
        """Projects the speech once; the state then serves any number of calls."""

    def seated(self) -> "SeatedState":
        """A state in which every streaming session has a seat; it serves calls of any of them together."""
        raise ValueError(f"connector {type(self).__name__} cannot stream: it has no seats for sessions")

    @abstractmethod
    def forward(self, text: Tensor, mask: Tensor, visible: Tensor, state: ConnectorState | SeatedState) -> LLMInput:
        """Consumes U new text positions and advances ``state``.

        Args:
            text: (B, U, D_llm) embeddings of the new text positions.
            mask: (B, U) bool, true at real positions. Padding may stand anywhere: rows of a batch can be at
                different positions of their texts.
            visible: (B, U) int32, frames that each position may see; 0 at padding.
            state: from :meth:`start` or :meth:`seated`.
        """
