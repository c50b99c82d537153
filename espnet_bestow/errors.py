"""Errors of data, which name the utterance and what is wrong with it."""

import contextlib
from collections.abc import Iterator, Sequence


class BadUtteranceError(ValueError):
    """An utterance that cannot be trained on or decoded; names it and the value."""


class BadRowError(ValueError):
    """The same, found where rows of a batch have no names.

    Args:
        row: which of them.
        problem: what it has that cannot be.
    """

    def __init__(self, row: int, problem: str):
        super().__init__(f"row {row} of the batch: {problem}")
        self.row = row
        self.problem = problem


@contextlib.contextmanager
def rows_among(rows: Sequence[int]) -> Iterator[None]:
    """Within this context only ``rows`` of a batch are looked at, and an error about one says which of all it is."""
    try:
        yield
    except BadRowError as error:
        raise BadRowError(rows[error.row], error.problem) from None


@contextlib.contextmanager
def rows_named(names: Sequence[str]) -> Iterator[None]:
    """Within this context an error about a row says which of B utterances it is, if they have names."""
    try:
        yield
    except BadRowError as error:
        if not names:
            raise
        raise BadUtteranceError(f"utterance {names[error.row]!r}: {error.problem}") from None
