"""Latency metrics of one utterance: when was each unit of the answer written?

Letters: N units written (words, or characters in languages without spaces), T length of the source.

Delays and T share one unit of time, in which the result comes out (milliseconds in all our files). `delays[i]` says how
much audio had been consumed when unit i was written; timestamps of a real clock (`computation_aware_clock`) give the
computation-aware variant of the same metric. A corpus score is the mean over utterances. Values may be negative: a
writer may be ahead of an evenly paced one.

The numbers are those of SimulEval 1.1.4 (AL, LAAL, AP, DAL, StartOffset, EndOffset) and OmniSTEval 0.1.10 (YAAL).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import isfinite

import numpy as np
from numpy.typing import NDArray

FRAME_MS = 80.0
RIGHT_CONTEXT = 13  # frames that the bidirectional encoder of the paper looks ahead

Times = Sequence[float] | NDArray


def _checked(delays: Times, source_length: float) -> NDArray:
    """Delays as (N,) float64; refuses what has no latency."""
    checked = np.asarray(delays, dtype=np.float64)
    if checked.ndim != 1 or not len(checked):
        raise ValueError(f"an answer without units has no latency (delays of shape {checked.shape}): count it apart")
    if not np.isfinite(checked).all():
        raise ValueError(f"delays must be finite, got {checked[~np.isfinite(checked)][0]} among {len(checked)}")
    if not (isfinite(source_length) and source_length > 0):
        raise ValueError(f"source length must be positive, got {source_length}")
    return checked


def _check_reference(reference_length: int) -> None:
    if reference_length < 1:
        raise ValueError(f"reference length must be at least 1 unit, got {reference_length}")


def _mean_lag(delays: NDArray, pace: float) -> float:
    """Mean of how far (N,) delays lie behind a writer of one unit every `pace`."""
    return float(np.mean(delays - np.arange(len(delays)) * pace))


def _lagging(delays: NDArray, source_length: float, units: int) -> float:
    """Average lagging behind `units` evenly spread units, up to the first written at the end of the source."""
    if delays[0] > source_length:
        return float(delays[0])
    late = np.flatnonzero(delays >= source_length)
    tau = late[0] + 1 if len(late) else len(delays)
    return _mean_lag(delays[:tau], source_length / units)


def al(delays: Times, source_length: float, reference_length: int) -> float:
    """Average lagging (STACL), against a writer paced by the reference as in SimulEval."""
    checked = _checked(delays, source_length)
    _check_reference(reference_length)
    return _lagging(checked, source_length, reference_length)


def laal(delays: Times, source_length: float, reference_length: int) -> float:
    """Length-adaptive average lagging: paced by the longer of answer and reference, so that babble earns nothing."""
    checked = _checked(delays, source_length)
    return _lagging(checked, source_length, max(len(checked), reference_length))


def ap(delays: Times, source_length: float, reference_length: int) -> float:
    """Average proportion of the source consumed per reference unit; above 1 where the answer is too long."""
    checked = _checked(delays, source_length)
    _check_reference(reference_length)
    return float(checked.sum() / (source_length * reference_length))


def dal(delays: Times, source_length: float, reference_length: int = 1) -> float:
    """Differentiable average lagging: each unit takes its time, so a burst at the end is not free.

    It is paced by the answer; `reference_length` changes nothing and stands here because all metrics share a face.
    """
    checked = _checked(delays, source_length)
    pace = source_length / len(checked)
    even = np.arange(len(checked)) * pace
    # g_i = max(d_i, g_(i-1) + pace) is a running maximum once the even writer is taken away.
    return float(np.mean(np.maximum.accumulate(checked - even)))


def yaal(delays: Times, source_length: float, reference_length: int, end: float | None = None) -> float | None:
    """LAAL over the units written before `end` only; None where there is none.

    Args:
        delays: (N,) since the beginning of the segment.
        source_length: T of the segment.
        reference_length: units of the reference.
        end: where units stop to count: T (default) for a recording of its own, the end of the recording for a segment
            of a long one.
    """
    checked = _checked(delays, source_length)
    late = np.flatnonzero(checked >= (source_length if end is None else end))
    tau = late[0] if len(late) else len(checked)
    if not tau:
        return None
    return _mean_lag(checked[:tau], source_length / max(len(checked), reference_length))


def start_offset(delays: Times, source_length: float, reference_length: int = 1) -> float:
    """When the first unit was written."""
    return float(_checked(delays, source_length)[0])


def end_offset(delays: Times, source_length: float, reference_length: int = 1) -> float:
    """How long after the end of the source the last unit was written."""
    return float(_checked(delays, source_length)[-1] - source_length)


Metric = Callable[[Times, float, int], float | None]  # (delays, source_length, reference_length)

# In the order of tables.
METRICS: dict[str, Metric] = {
    "laal": laal,
    "al": al,
    "ap": ap,
    "dal": dal,
    "yaal": yaal,
    "start_offset": start_offset,
    "end_offset": end_offset,
}
UNITLESS = frozenset({"ap"})


def length_ratio(answer_length: int, reference_length: int) -> float:
    """Units written per unit of the reference."""
    _check_reference(reference_length)
    return answer_length / reference_length


def computation_aware_clock(arrivals: Times, compute: Times) -> NDArray:
    """When one worker has finished each piece of work: f_n = max(a_n, f_(n-1)) + c_n.

    Work overlaps with speech that is still arriving, and piles up only when it is slower than speech. SimulEval's
    `elapsed` adds all earlier compute instead, as if audio had waited for it.

    Args:
        arrivals: (N,) a_n, when the audio of each piece had arrived.
        compute: (N,) c_n, what the work on it took, in the same unit.

    Returns:
        (N,) f_n. A unit written by piece n carries f_n.
    """
    arrived, took = (np.asarray(times, dtype=np.float64) for times in (arrivals, compute))
    if arrived.shape != took.shape or arrived.ndim != 1:
        raise ValueError(f"arrivals {arrived.shape} and compute {took.shape} must be two equal lists of times")
    if len(took) and not took.min() >= 0:
        raise ValueError(f"compute times must be at least 0, got {took.min()}")
    finished, last = np.empty_like(arrived), 0.0
    for n, (a, c) in enumerate(zip(arrived, took, strict=True)):
        last = finished[n] = max(a, last) + c
    return finished


def rtf(compute: Times, source_length: float) -> float:
    """Real-time factor: all compute time over the length of the source, in the same unit."""
    if not (isfinite(source_length) and source_length > 0):
        raise ValueError(f"source length must be positive, got {source_length}")
    return float(np.sum(compute)) / source_length


def start_lag(k: int, step: int, right_context: int = RIGHT_CONTEXT, frame_ms: float = FRAME_MS) -> float:
    """Milliseconds of audio that wait-k consumes before its first token: (K * L + right context) frames."""
    return (k * step + right_context) * frame_ms


def paper_delays(
    word_tokens: Sequence[int], source_length: float, k: int, step: int, right_context: int = RIGHT_CONTEXT
) -> list[float]:
    """Delays (ms) as the authors of BESTOW count them: computed from K and L, never measured.

    Token j is said to be written after min(T, ((j + K) * L + right context) * 80 ms). A word counts from its *first*
    token, and the end token is counted as one more unit.

    Args:
        word_tokens: (N,) how many tokens each word has; 0 where the next word begins in the same token.
        source_length: T in milliseconds.
        k: wait-k lagging K.
        step: pre-decision ratio L.
        right_context: frames of look-ahead.

    Returns:
        (N + 1,) milliseconds.
    """
    if wrong := [count for count in word_tokens if count < 0]:
        raise ValueError(f"no word has less than 0 tokens, got {wrong[0]} among {list(word_tokens)}")
    starts = accumulate(word_tokens, initial=0)
    return [min(source_length, start_lag(j + k, step, right_context)) for j in starts]


def laal_paper(
    word_tokens: Sequence[int],
    source_length: float,
    reference_length: int,
    k: int,
    step: int,
    right_context: int = RIGHT_CONTEXT,
) -> float:
    """LAAL of `paper_delays`: comparable with the paper's tables, and with nothing that was measured."""
    return laal(paper_delays(word_tokens, source_length, k, step, right_context), source_length, reference_length)
