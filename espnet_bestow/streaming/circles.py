"""Does a text go in circles? Models do, above all where they hear nothing they know."""

from collections.abc import Sequence

CIRCLES = (5, 4, 3)
"""How often one, two and three tokens may follow themselves."""


def goes_in_circles(ids: Sequence[int], most: Sequence[int] = CIRCLES) -> bool:
    """Whether the text ends in more than ``most[p - 1]`` repetitions of its last p tokens."""
    for period, allowed in enumerate(most, 1):
        tail = list(ids[-period * (allowed + 1) :])
        if len(tail) == period * (allowed + 1) and tail == tail[-period:] * (allowed + 1):
            return True
    return False
