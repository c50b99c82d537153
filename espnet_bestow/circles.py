"""Does a text go in circles? Models do, above all where they hear nothing they know."""

from collections.abc import Sequence

CIRCLES = (5, 4, 3, 2, 2, 2)
"""How often one, two, three, ... tokens may follow themselves."""


def widest(most: Sequence[int] = CIRCLES) -> int:
    """How many tokens :func:`circling` looks at."""
    return max((period * (allowed + 1) for period, allowed in enumerate(most, 1)), default=1)


def circling(ids: Sequence[int], most: Sequence[int] = CIRCLES) -> int:
    """How many of the last tokens are too much: all repetitions of the last p if they are more than ``most[p - 1]``."""
    for period, allowed in enumerate(most, 1):
        if len(ids) <= period or ids[-1] != ids[-1 - period]:
            continue  # nearly always
        tail = list(ids[-period * (allowed + 1) :])
        if len(tail) == period * (allowed + 1) and tail == tail[-period:] * (allowed + 1):
            return period * allowed
    return 0
