"""Caches in which every session has a seat.

Many streaming sessions share one set of tensors: a session sits in one row of each, and its text is compact in it,
from slot 0 on, whatever the other sessions do. A step serves any of the seats; taking tokens back is nothing but a
smaller length, since slots beyond it are never seen and are written again.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_SLOTS = 64
"""Of a new buffer: fewer would soon be too few for most texts."""


@dataclass(frozen=True)
class Placement:
    """Where U new text positions of B seats go."""

    seats: tuple[int, ...]  # B of them, known without asking the GPU
    rows: Tensor  # (B,) the same
    slots: Tensor  # (B, U) slot of each new position; padding stands behind the real ones and is overwritten later
    total: int  # N, slots in use afterwards
    single: int | None = None  # the slot of the only new position of the only seat: the step that is taken most often

    @property
    def leading(self) -> bool:
        """Whether the seats are 0, 1, ..., B - 1, so that reading needs no copy."""
        return self.seats == tuple(range(len(self.seats)))

    @cached_property  # every layer writes to these
    def index(self) -> tuple[Tensor, Tensor]:
        """(B, 1) and (B, U): where in a tensor (R, N, ...) the new positions go."""
        return self.rows[:, None], self.slots

    @cached_property
    def rows_in_use(self) -> int:
        """The fewest rows that a tensor needs for these seats."""
        return max(self.seats) + 1

    @cached_property
    def before(self) -> Tensor:
        """(B, U, N) bool: each position itself and what is before it."""
        return torch.arange(self.total, device=self.slots.device) <= self.slots[..., None]

    @property
    def allowed(self) -> Tensor | None:
        """What each position sees, as :attr:`before`. None: that is everything."""
        return None if self.single is not None else self.before

    def select(self, keep: Sequence[int]) -> "Placement":
        """Only these of the B seats."""
        index = torch.tensor(keep, device=self.rows.device)
        return Placement(tuple(self.seats[i] for i in keep), self.rows[index], self.slots[index], self.total)


class Seats:
    """Who sits where, and how many text positions of each seat count."""

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}  # seat -> text positions
        self._free: list[int] = []

    def take(self) -> int:
        """A free seat; low numbers first, so that the tensors stay small."""
        seat = heapq.heappop(self._free) if self._free else len(self.lengths)
        self.lengths[seat] = 0
        return seat

    def leave(self, seat: int) -> None:
        """Frees a seat."""
        del self.lengths[seat]
        heapq.heappush(self._free, seat)
        if not self.lengths:
            self._free.clear()

    def place(self, seats: Sequence[int], mask: Tensor) -> Placement:
        """Slots for new positions; nothing counts before :meth:`advance`.

        Args:
            seats: B seats.
            mask: (B, U) bool, true at real positions.
        """
        rows = torch.tensor(list(seats), device=mask.device)
        if mask.shape == (1, 1):
            slot = self.lengths[seats[0]]
            return Placement(tuple(seats), rows, torch.tensor([[slot]], device=mask.device), slot + 1, slot)
        lengths = torch.tensor([self.lengths[seat] for seat in seats], device=mask.device)
        total = max(self.lengths[seat] for seat in seats) + mask.shape[1]
        if mask.shape[1] == 1:
            return Placement(tuple(seats), rows, lengths[:, None], total)
        real = mask.cumsum(1)
        padding = real[:, -1:] + mask.logical_not().cumsum(1)
        slots = lengths[:, None] + torch.where(mask, real, padding) - 1
        return Placement(tuple(seats), rows, slots, total)

    def advance(self, seat: int, positions: int) -> None:
        """The last ``positions`` placed positions of a seat now count."""
        self.lengths[seat] += positions


class SeatBuffer:
    """A tensor (R, N, ...) with a row per seat and a slot per position; both grow by doubling."""

    def __init__(self) -> None:
        self.data: Tensor | None = None

    def write(self, at: Placement, new: Tensor) -> Tensor:
        """Puts ``new`` (B, U, ...) in its slots; returns all of these seats, (B, N, ...)."""
        data = self._reserve(at.rows_in_use, at.total, new)
        if at.single is not None:
            data[at.seats[0], at.single] = new[0, 0]
        else:
            data[at.index] = new.to(data.dtype)
        return self.read(at)

    def read(self, at: Placement) -> Tensor:
        """(B, N, ...), a view where it can be."""
        assert self.data is not None
        if len(at.seats) == 1:
            return self.data[at.seats[0] : at.seats[0] + 1, : at.total]
        return self.data[: len(at.seats), : at.total] if at.leading else self.data[at.rows, : at.total]

    def room(self, at: Placement, like: Tensor) -> Tensor:
        """All of the memory, (R, N, ...), with room for the new positions; ``like`` (..., ..., ...) is what goes in."""
        return self._reserve(at.rows_in_use, at.total, like if self.data is None else self.data)

    def put(self, seat: int, content: Tensor) -> None:
        """Replaces the first slots of one seat by ``content`` (n, ...)."""
        self._reserve(seat + 1, len(content), content[None])[seat, : len(content)] = content

    def share(self, seat: int, others: Sequence[int], slots: int) -> None:
        """The first slots of ``others`` become those of ``seat``."""
        if others and self.data is not None:
            first, end = min(others), max(others) + 1
            data = self._reserve(end, slots, self.data)
            # Sessions that begin together sit side by side: memory copies a block sooner than rows one by one.
            rows = slice(first, end) if end - first == len(set(others)) else list(others)
            data[rows, :slots] = data[seat, :slots].clone()

    def cover(self, at: Placement, slots: int = 0) -> None:
        """Makes room, in what was written to before, for seats that have nothing here yet and for so many slots."""
        if self.data is not None:
            self._reserve(at.rows_in_use, slots, self.data)

    def _reserve(self, rows: int, slots: int, like: Tensor) -> Tensor:
        have = (0, 0) if self.data is None else self.data.shape[:2]
        if self.data is None or rows > have[0] or slots > have[1]:
            pairs = zip((rows, slots), have, (1, _SLOTS), strict=True)
            want = [h if n <= h else max(n, 2 * h, least) for n, h, least in pairs]
            # Zeros, since a slot that is not seen still meets a weight of 0, and 0 times NaN is NaN.
            grown = like.new_zeros(*want, *like.shape[2:])
            if self.data is not None:
                grown[: have[0], : have[1]] = self.data
            self.data = grown
        return self.data
