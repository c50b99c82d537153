"""An LLM's cache in which every streaming session has a seat (see :mod:`espnet_bestow.seats`)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from espnet_bestow.llm.llama_token import LlamaToken
from espnet_bestow.seats import Placement, SeatBuffer


class _SeatedLayer(CacheLayerMixin):
    """Keys and values of one layer."""

    def __init__(self, cache: "SeatedCache"):
        super().__init__()
        self._cache = cache
        self._buffers = SeatBuffer(), SeatBuffer()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers take their shape from what is first written."""
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """New keys and values, (B, H, U, D) each -> all that these seats hold, (B, H, N, D) each."""
        at = self._cache.at
        assert at is not None
        keys, values = self._buffers
        grown_keys = keys.write(at, key_states.transpose(1, 2)).transpose(1, 2)
        return grown_keys, values.write(at, value_states.transpose(1, 2)).transpose(1, 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that the next call sees, and which is the first."""
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        """Slots in use."""
        return 0 if self._cache.at is None else self._cache.at.total

    def get_max_length(self) -> int:
        """No limit."""
        return -1

    @property
    def buffers(self) -> tuple[SeatBuffer, SeatBuffer]:
        """Keys and values, each (R, N, H, D)."""
        return self._buffers


class SeatedCache(Cache):
    """A transformers cache over seats; ``at`` says whose turn it is."""

    def __init__(self, layers: int):
        self.at: Placement | None = None
        super().__init__(layers=[_SeatedLayer(self) for _ in range(layers)])


class SeatedLLMState:
    """The LLM's part of many sessions' state.

    Args:
        layers: how many the LLM has.
        limited: whether some of them see only the last positions of the text, so that a mask has to say which.
        token: the step of one token in one call, where it can be had.
    """

    def __init__(self, layers: int, limited: bool = False, token: LlamaToken | None = None):
        self.cache = SeatedCache(layers)
        self.limited = limited
        self.token = token

    def sit(self, at: Placement) -> None:
        """The next call is for these seats."""
        self.cache.at = at

    def select(self, rows: Sequence[int]) -> None:
        """Only these of the seats go on to think."""
        assert self.cache.at is not None
        self.cache.at = self.cache.at.select(rows)

    def share(self, seat: int, others: Sequence[int], slots: int) -> None:
        """The first text positions of ``others`` become those of ``seat``."""
        for buffer in self._buffers:
            buffer.share(seat, others, slots)

    def enter(self, mask: Tensor) -> tuple[Tensor | None, Tensor]:
        """New positions, mask (B, U): which of all N they may see, (B, U, N), None for all; their numbers (B, U)."""
        at = self.cache.at
        assert at is not None
        return at.before if self.limited else at.allowed, at.slots

    def one_token(self, x: Tensor) -> Tensor | None:
        """Logits (B, 1, V) of x (B, U, D) where :class:`LlamaToken` takes it, else None."""
        if self.token is None or not self.token.takes(x):
            return None
        assert self.cache.at is not None
        return self.token(x, self.cache.at, self._buffers)

    @property
    def _buffers(self) -> list[SeatBuffer]:
        """Keys and values of each layer."""
        layers = [layer for layer in self.cache.layers if isinstance(layer, _SeatedLayer)]
        return [buffer for layer in layers for buffer in layer.buffers]
