"""BESTOW on one screen (paper, Sec. 4.2): encoder -> connector -> LLM.

    waveform (B, S) -> encoder -> Speech (B, F, D_enc)
    ids (B, U) -> LLM embeddings (B, U, D_llm) -> connector(text, speech, visible) -> LLM -> logits (B, U, V)

``visible`` (B, U) says how many frames each text position may see; nothing else distinguishes offline from streaming,
and a state distinguishes nothing but whether the text comes in one piece or in steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from espnet_bestow.connectors import Connector, ConnectorState, LLMInput, SeatedState, Speech
from espnet_bestow.errors import BadRowError
from espnet_bestow.llm.causal_lm import CausalLM, LLMState
from espnet_bestow.llm.seated import SeatedLLMState
from espnet_bestow.seats import Placement, Seats


@dataclass
class ModelState:
    """Everything that is remembered between incremental calls."""

    connector: ConnectorState
    llm: LLMState | None

    def select(self, rows: Tensor) -> "ModelState":
        """The given text rows, each as often as it is named (beams); a row may only move within its own utterance."""
        return ModelState(self.connector.select(rows), self.llm and self.llm.select(rows))


@dataclass
class SeatedModelState:
    """The state of many streaming sessions; see :mod:`espnet_bestow.seats`."""

    seats: Seats
    connector: SeatedState
    llm: SeatedLLMState

    def sit(self, seats: Sequence[int], mask: Tensor) -> Placement:
        """The next :meth:`BestowModel.read` is for these seats, mask (B, U)."""
        at = self.seats.place(seats, mask)
        self.connector.sit(at)
        self.llm.sit(at)
        return at

    def share(self, seat: int, others: Sequence[int], positions: int) -> None:
        """The first text positions of ``others`` become those of ``seat``; nothing counts before Seats.advance."""
        self.connector.share(seat, others, positions)
        self.llm.share(seat, others, positions)

    def leave(self, seat: int) -> None:
        """Frees a seat; its memory is for whoever sits down next."""
        self.connector.leave(seat)
        self.seats.leave(seat)


class BestowModel(nn.Module):
    """The model without any toolkit around it.

    Args:
        encoder: maps features (B, T, 80) and lengths (B,) to (frames (B, F, D_enc), lengths (B,), state).
        connector: how speech meets the LLM.
        llm: the language model.
        features: maps a waveform (B, S) and lengths (B,) to features (B, T, 80) and lengths (B,).
    """

    def __init__(self, encoder: nn.Module, connector: Connector, llm: CausalLM, features: nn.Module):
        super().__init__()
        self.features = features
        self.encoder = encoder
        self.connector = connector
        self.llm = llm

    def encode(self, waveform: Tensor, lengths: Tensor) -> Speech:
        """waveform (B, S), lengths (B,) -> Speech with frames (B, F, D_enc)."""
        frames, frame_lengths, _ = self.encoder(*self.features(waveform, lengths))
        return Speech(frames, frame_lengths)

    def start(self, speech: Speech) -> ModelState:
        """Projects the speech once; the state then takes text in any number of steps."""
        return ModelState(self.connector.start(speech), self.llm.start(speech.frames.shape[0], speech.frames.device))

    def seated(self) -> SeatedModelState:
        """A state with seats for streaming sessions."""
        return SeatedModelState(Seats(), self.connector.seated(), self.llm.seated())

    def step(self, ids: Tensor, mask: Tensor, visible: Tensor, state: ModelState, keep: Tensor | int = 0) -> Tensor:
        """Consumes U new tokens: :meth:`read`, then :meth:`think`.

        Args:
            ids: (B, U) token ids; any value where ``mask`` is false.
            mask: (B, U) bool, true at real positions.
            visible: (B, U) int32, frames each position may see.
            state: from :meth:`start`; advanced by the call.
            keep: which logits to compute, see :meth:`CausalLM.forward`; counts text positions.

        Returns:
            logits (B, kept, V).
        """
        text = self.read(ids, mask, visible, state)
        before = text.embeddings.shape[1] - ids.shape[1]
        if before:
            self._check_room(text.mask, before)
        if isinstance(keep, Tensor):
            keep = keep + before  # the text positions are the last ones
        elif keep == 0:
            keep = ids.shape[1]
        return self.think(text, state, keep)

    def _check_room(self, mask: Tensor, before: int) -> None:
        """An error if speech, the first ``before`` positions of mask (B, N), and text are too much for the LLM."""
        used, room = mask.sum(1), self.llm.context
        row = int(used.argmax())
        if room is not None and int(used[row]) > room:
            speech = int(mask[row, :before].sum())
            raise BadRowError(
                row,
                f"speech of {speech} positions and text of {int(used[row]) - speech} exceed the LLM's context of "
                f"{room}",
            )

    def read(self, ids: Tensor, mask: Tensor, visible: Tensor, state: ModelState | SeatedModelState) -> LLMInput:
        """The connector's part of a step: the new tokens read the speech."""
        # A frozen LLM may be stored in another precision than what is trained; a connector whose weights were all
        # rounded has no parameters left and takes any.
        embeddings = self.llm.embed(ids)
        wanted = next(self.connector.parameters(), embeddings).dtype
        return self.connector(embeddings.to(wanted), mask, visible, state.connector)

    def think(self, text: LLMInput, state: ModelState | SeatedModelState, keep: Tensor | int = 0) -> Tensor:
        """The LLM's part of a step; ``keep`` counts positions of ``text``. Returns logits (B, kept, V)."""
        return self.llm(text.embeddings, text.mask, state.llm, keep, text.readers)

    def teacher_forced(
        self, speech: Speech, ids: Tensor, mask: Tensor, visible: Tensor, keep: Tensor | int = 0
    ) -> Tensor:
        """The full pass of training: one step from a fresh connector state, without an LLM cache."""
        return self.step(ids, mask, visible, ModelState(self.connector.start(speech), None), keep)
