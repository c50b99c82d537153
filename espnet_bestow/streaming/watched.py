"""What a lone session's tokens looked at, kept for plots."""

from math import ceil, nan

import numpy as np
from torch import Tensor

from espnet_bestow.evaluate.emission import SpokenWord
from espnet_bestow.evaluate.read_write_plot import ReadWriteTrace
from espnet_bestow.streaming.policies import Policy, TokenPolicy, View
from espnet_bestow.streaming.session import Word


class Watched(TokenPolicy):
    """Decides as the policy it watches, and remembers the attention that each token was written with.

    For one session of one segment: a policy does not know whose token it decides on.

    Args:
        policy: one that decides token by token.
    """

    def __init__(self, policy: Policy):
        if not isinstance(policy, TokenPolicy):
            raise ValueError(f"{type(policy).__name__} writes drafts, whose tokens are read many times over")
        self.policy = policy
        self.blind_prompt = policy.blind_prompt
        self.rows: dict[int, Tensor] = {}
        self._written = 0

    def frames(self, written: int, reads: int) -> int:
        """See base class."""
        self._written = written
        return self.policy.frames(written, reads)

    def accepts(self, view: View) -> bool:
        """See base class."""
        self.rows[self._written] = view.attention  # a token that is read again replaces what it saw before
        return self.policy.accepts(view)

    def trace(
        self, words: list[Word], pieces: list[str], seconds: float, frame_seconds: float, spoken: list[SpokenWord]
    ) -> ReadWriteTrace:
        """All that a plot shows.

        Args:
            words: everything the session wrote.
            pieces: (U,) text of each of :func:`tokens_of` the words.
            seconds: length of the audio.
            frame_seconds: length of an encoder frame.
            spoken: words of the recording, where they are known.
        """
        if segments := {word.segment for word in words} - {0}:
            raise ValueError(f"a plot shows one segment, the session had {max(segments) + 1}")
        visible = _once(words, [word.visible for word in words])
        # A word comes out with its last token; those before it have no time of their own.
        ends = {word.start + len(word.tokens) - 1: word for word in words}
        frames = max([ceil(seconds / frame_seconds - 1e-9), *visible])
        attention = np.zeros((len(visible), frames), dtype=np.float32)
        for token in range(len(visible)):
            row = self.rows[token]
            attention[token, : len(row)] = row.float().numpy()
        return ReadWriteTrace(
            tokens=pieces,
            visible=visible,
            frames=frames,
            attention=attention,
            consumed=[ends[token].seen if token in ends else nan for token in range(len(visible))],
            emitted=[ends[token].emitted if token in ends else nan for token in range(len(visible))],
            spoken=spoken,
            frame_seconds=frame_seconds,
        )


def tokens_of(words: list[Word]) -> list[int]:
    """The tokens of all words of a segment, each once, though neighbours may share one."""
    return _once(words, [word.tokens for word in words])


def _once(words: list[Word], values: list[tuple[int, ...]]) -> list[int]:
    """What each word says of its tokens, one after the other: of a shared token, what the first word says."""
    found: list[int] = []
    for word, own in zip(words, values, strict=True):
        found += own[len(found) - word.start :]
    return found
