"""Bootstrap confidence intervals from per-utterance sufficient statistics.

Letters in this room: N utterances, M statistics per utterance, R resamples.

An utterance (reference and hypothesis together) is the unit that is drawn. Scores are computed
from summed statistics, so no text is scored twice. The draw depends on the seed and on N only:
two systems scored on the same utterances see the same draws, which makes their comparison paired.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

ValueOf = Callable[[NDArray], NDArray]  # summed statistics (R, M) -> values (R,)

RESAMPLES = 1000
SEED = 0
_DRAWS_AT_ONCE = 2_000_000  # bounds memory to some 16 MB whatever N is


def _draw_weights(num_utts: int, resamples: int, seed: int) -> Iterator[NDArray]:
    """Yields blocks (R', N): how often each utterance was drawn in each resample."""
    rng = np.random.default_rng(seed)
    uniform = np.full(num_utts, 1.0 / num_utts)
    block = max(1, _DRAWS_AT_ONCE // num_utts)
    for start in range(0, resamples, block):
        yield rng.multinomial(num_utts, uniform, size=min(block, resamples - start))


def resample_totals(statistics: NDArray, resamples: int = RESAMPLES, seed: int = SEED) -> NDArray:
    """Sums statistics (N, M) over each bootstrap sample of N utterances: totals (R, M)."""
    if statistics.ndim != 2 or not len(statistics):
        raise ValueError(f"statistics must be (N, M) with N > 0, got shape {statistics.shape}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    blocks = _draw_weights(len(statistics), resamples, seed)
    return np.concatenate([weights @ statistics for weights in blocks])


def _percentiles(values: NDArray, level: float) -> tuple[float, float]:
    if not 0.0 < level < 1.0:
        raise ValueError(f"confidence level must be between 0 and 1, got {level}")
    tail = 100.0 * (1.0 - level) / 2.0
    low, high = np.percentile(values, [tail, 100.0 - tail])
    return float(low), float(high)


def confidence_interval(
    statistics: NDArray,
    value_of: ValueOf,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Percentile interval of the corpus value computed from statistics (N, M)."""
    totals = resample_totals(statistics, resamples, seed)
    return _percentiles(value_of(totals), level)


def ratio_intervals(
    over: NDArray, under: NDArray, level: float = 0.95, resamples: int = RESAMPLES, seed: int = SEED
) -> list[tuple[float, float]]:
    """Intervals of M ratios of sums, all from the same draws.

    Args:
        over: (N, M) what each utterance adds above the line.
        under: (N, M) and below it; 0 above and below for an utterance without this quantity.
        level: of confidence.
        resamples: how many.
        seed: of the draws.
    """
    totals = resample_totals(np.concatenate([over, under], axis=1), resamples, seed)  # (R, 2 M)
    above, below = np.split(totals, 2, axis=1)
    # A resample may miss all utterances that have a quantity; it counts as 0.
    values = above / np.maximum(below, np.finfo(np.float64).tiny)
    return [_percentiles(column, level) for column in values.T]


def difference_interval(
    statistics_a: NDArray,
    statistics_b: NDArray,
    value_of: ValueOf,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> tuple[float, float]:
    """Interval of value(a) - value(b) for two systems on the same N utterances, in one order."""
    if len(statistics_a) != len(statistics_b):
        raise ValueError(
            "a paired comparison needs the same utterances on both sides, "
            f"got {len(statistics_a)} and {len(statistics_b)}"
        )
    values_a = value_of(resample_totals(statistics_a, resamples, seed))
    values_b = value_of(resample_totals(statistics_b, resamples, seed))
    return _percentiles(values_a - values_b, level)
