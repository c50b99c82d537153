"""How far each kind of an LLM's layers looks back: over all of the text, or a window (Mistral 0.1, Phi-3, Gemma 2, 3).

transformers lays a window over the columns of a batch. Here padding may stand between columns, and a session's text
sits in a seat: a window counts real positions, in training as in decoding, so that both compute the same.
"""

import torch
from torch import Tensor
from transformers import PretrainedConfig

FULL, SLIDING = "full_attention", "sliding_attention"
_BY_COLUMN = ("bloom", "mpt")
"""LLMs whose attention (ALiBi) grows weaker with the distance of columns."""
_FROM_THE_END = ("gpt_neo",)
"""LLMs that take what is new for the last columns, whatever a mask says; seats put it where each text ends."""


class Sight:
    """What the layers of an LLM may see, as transformers' own forward pass takes it.

    Args:
        config: of the LLM.
    """

    def __init__(self, config: PretrainedConfig):
        text = config.get_text_config()
        if text.model_type in _BY_COLUMN or getattr(text, "alibi", False):
            raise ValueError(
                f"an LLM of type {text.model_type!r} with ALiBi cannot be used: it measures distances between the "
                "columns of a batch, padding included; take one with rotary or learned positions"
            )
        self._seated = text.model_type not in _FROM_THE_END
        window = getattr(text, "sliding_window", None)
        kinds = getattr(text, "layer_types", None) or [FULL if window is None else SLIDING]
        if unknown := sorted(set(kinds) - {FULL, SLIDING}):
            raise ValueError(
                f"an LLM with layers of types {unknown} cannot be used: all of them must be {FULL!r} or {SLIDING!r}"
            )
        self._windows: dict[str, int | None] = {kind: window if kind == SLIDING else None for kind in kinds}

    @property
    def limited(self) -> bool:
        """Whether there is any window."""
        return any(window is not None for window in self._windows.values())

    def check_seats(self) -> None:
        """An error if texts of different lengths cannot share a cache."""
        if not self._seated:
            raise ValueError(f"this LLM cannot stream: those of the types {_FROM_THE_END} need texts that end together")

    def masks(self, allowed: Tensor | None, dtype: torch.dtype) -> Tensor | dict[str, Tensor | None] | None:
        """What is added to scores, (B, 1, U, N), for each kind of layer where there are several.

        Args:
            allowed: (B, U, N) bool, which of the N positions so far each new one may see, in order; None: all of
                them, which only an LLM without windows can be told.
            dtype: of the scores.
        """
        masks = {kind: _added(_recent(allowed, window), dtype) for kind, window in self._windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))


def _recent(allowed: Tensor | None, window: int | None) -> Tensor | None:
    """Only the last ``window`` of the positions that each position may see."""
    if window is None:
        return allowed
    assert allowed is not None
    return allowed & (allowed.flip(-1).cumsum(-1).flip(-1) <= window)


def _added(allowed: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The mask (B, U, N) as what transformers adds to scores, (B, 1, U, N)."""
    if allowed is None:
        return None
    bias = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return bias.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]
