"""Whose frames depend on the padding of a batch, and how a batch is encoded so that none do.

Convolutions of ESPnet's conformer, among others, run into the padding behind a recording as into speech: what they make
of its end depends on what else is in the batch. So they are trained; but an answer must not depend on other recordings,
nor a streamed word on how the audio was cut.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from espnet_bestow.errors import rows_among

KNOWN = (
    "BranchformerEncoder",
    "DefaultFrontend",
    "EBranchformerEncoder",
    "GlobalMVN",
    "LinearProjection",
    "TransformerEncoder",
    "UtteranceMVN",
)
"""Parts of ESPnet that padding does not change, by name; tests/encoders/test_padding.py looks at them."""

EncodeBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(B, N, ...), lengths (B,) -> frames (B, F, D_enc), lengths (B,)."""


def ignores_padding(part: Any) -> bool:
    """Whether a part of the model, or its absence, is known to give a row what it gives it alone.

    Ours, and those of others who know, say so by an attribute of this name.
    """
    if part is None:
        return True
    if hasattr(part, "ignores_padding"):
        return part.ignores_padding
    name = type(part).__name__
    # Of a transformer only the configuration knows whether it convolves: over positions, or in its feed-forward.
    convolves = name == "TransformerEncoder" and any(isinstance(each, nn.Conv1d) for each in part.modules())
    return name in KNOWN and not convolves


def by_length(encode: EncodeBatch, batch: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """What ``encode`` makes of the rows of a batch (B, N, ...) if no padding is behind any.

    Returns:
        frames (B, F, D_enc), 0 behind the last of each row, and how many these are (B,).
    """
    sizes = lengths.tolist()
    found: dict[int, Tensor] = {}
    for size in dict.fromkeys(sizes):
        rows = [row for row, own in enumerate(sizes) if own == size]
        with rows_among(rows):
            alike = torch.stack([batch[row, :size] for row in rows])
            frames, counts = encode(alike, lengths.new_full((len(rows),), size))
        found |= {row: own[:count] for row, own, count in zip(rows, frames, counts.tolist(), strict=True)}
    each = [found[row] for row in range(len(sizes))]
    return pad_sequence(each, batch_first=True), torch.tensor([len(row) for row in each], device=lengths.device)
