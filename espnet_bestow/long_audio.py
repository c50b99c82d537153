"""Recordings that are longer than a model is used to: cut where they are quietest, answered piece by piece."""

import numpy as np

HOP = 0.02
"""Seconds between the places where a recording may be cut."""
AROUND = 10
"""Hops around such a place over which its loudness is measured: 0.2 s, longer than the closure of a consonant."""
QUIET = 35.0
"""Decibels under the loudest place below which all are equally quiet."""
SILENT = -60.0
"""Decibels under full scale of which the same is true."""
SHORTEST = 1.0
"""The least that ``longest`` may be, in seconds."""


def pieces(samples: np.ndarray, rate: int, longest: float | None) -> list[np.ndarray]:
    """samples (S,) -> pieces of at most ``longest`` seconds that together are all of it, but for silent ones.

    What is too long is cut at its quietest place, again and again: mostly in pauses, also in noise.
    """
    if longest is not None and not longest >= SHORTEST:
        raise ValueError(f"longest={longest} must be at least {SHORTEST:g} second")
    if longest is None or len(samples) <= longest * rate:
        return [samples]
    hop = round(HOP * rate)
    most = int(longest / HOP)  # hops
    loudness = _loudness(samples, hop)  # (N,)
    spans, todo = [], [(0, len(loudness))]
    while todo:
        begin, end = todo.pop()
        if end - begin <= most:
            spans.append((begin, end))
            continue
        # Not so near the ends that a piece is no speech at all.
        margin = most // 8
        inside = loudness[begin + margin : end - margin + 1]
        quietest = np.flatnonzero(inside == inside.min()) + begin + margin
        cut = int(quietest[np.abs(quietest - (begin + end) / 2).argmin()])  # the one that is nearest to the middle
        todo += [(cut, end), (begin, cut)]  # the first piece is looked at first
    found = [samples[begin * hop : end * hop] for begin, end in spans if loudness[begin:end].max() > 0.0]
    return found or [samples]


def _loudness(samples: np.ndarray, hop: int) -> np.ndarray:
    """Decibels above what is quiet, 0 there, around the beginning of every ``hop`` samples: (ceil(S / hop),)."""
    count = -(-len(samples) // hop)
    power = np.zeros(count + 2 * AROUND)
    squares = np.square(np.pad(samples, (0, count * hop - len(samples))), dtype=np.float64)
    power[AROUND : AROUND + count] = squares.reshape(count, hop).sum(1)
    sums = np.concatenate([[0.0], power.cumsum()])
    half = AROUND // 2
    around = sums[AROUND + half : AROUND + half + count] - sums[AROUND - half : AROUND - half + count]
    decibels = 10.0 * np.log10(np.maximum(around / (AROUND * hop), 1e-12))
    return np.maximum(decibels - max(decibels.max() - QUIET, SILENT), 0.0)
