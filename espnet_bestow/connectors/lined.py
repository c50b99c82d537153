"""The first text of a batch in one line (:mod:`espnet_bestow.line`), for blocks that do not know it.

The blocks of a connector get a batch of one row, the line, and memories that put queries into rows where they attend.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from espnet_bestow.connectors.attention import KeysValues, SpeechMemory, TextCache
from espnet_bestow.line import Line

if TYPE_CHECKING:
    from espnet_bestow.connectors.cross_attention import CrossAttentionState


@dataclass
class LinedText:
    """A text cache whose keys and values come in a line and lie in rows."""

    rows: KeysValues
    line: Line

    def extend(self, keys: Tensor, values: Tensor) -> "LinedText":
        """Those of all positions, (1, H, N, D) each, and none before them."""
        return LinedText(KeysValues(self.line.rows(keys), self.line.rows(values)), self.line)

    def look_back(self, q: Tensor, _: Tensor | None) -> Tensor:
        """q (1, H, N, D) -> (1, H, N, D), each position from its row's earlier ones."""
        return self.line.attend(q, self.rows.keys, self.rows.values)


@dataclass
class LinedSpeech:
    """Speech of B utterances, read by a line."""

    rows: SpeechMemory
    line: Line

    def attend(self, q: Tensor, visible: Tensor) -> Tensor:
        """q (1, H, N, D), visible (B, W) of the rows -> (1, H, N, D)."""
        return self.line.heads(self.rows.attend(self.line.rows(q), visible))


class LinedState:
    """A fresh state, as the blocks see it while the line goes through them.

    Args:
        state: remembers the text in rows, whose real positions come first.
        line: of the text.
    """

    def __init__(self, state: "CrossAttentionState", line: Line):
        self._state, self._line = state, line
        self.speech = [LinedSpeech(each, line) for each in state.speech]
        self.text: list[TextCache] = [LinedText(each, line) for each in state.text]

    def enter(self, _: Tensor) -> None:
        """All positions of the line are new, and LinedText knows which of them may be seen."""
        self._state.mask = self._line.mask

    def keep(self, block: int, grown: TextCache) -> None:
        """The text cache of a block after the line."""
        assert isinstance(grown, LinedText)
        self._state.keep(block, grown.rows)
