"""Latency of a test set: corpus means with bootstrap intervals, and counts of what has no latency.

Three clocks give three families of scores, which never share a column:

    laal ...            delays: audio consumed, whatever the machine (computation-unaware)
    laal_ca ...         the real clock of `latency.computation_aware_clock`
    laal_elapsed ...    SimulEval's `elapsed`, which adds all earlier compute to every unit

and `laal_paper` stands apart: the authors' analytic count, from the log's key `paper_delays`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_bestow.evaluate.bootstrap import RESAMPLES, ratio_intervals
from espnet_bestow.evaluate.instances import Instance, Unit, units_of
from espnet_bestow.evaluate.latency import METRICS, laal
from espnet_bestow.evaluate.results import write_text_atomically

CLOCKS = {"": "delays", "_ca": "clock", "_elapsed": "elapsed"}
PAPER_KEY = "paper_delays"
DEGENERATE_ABOVE = 20.0  # percent: OmniSTEval's threshold

_Part = tuple[float, float]  # what an utterance adds above and below the line of a ratio
_NOTHING: _Part = (0.0, 0.0)


@dataclass(frozen=True)
class LatencyScore:
    """A corpus value with its 95 % interval.

    Attributes:
        value: mean over utterances, or ratio of sums.
        n: utterances that it is made of.
        low: of the interval.
        high: of the interval.
    """

    value: float
    n: int
    low: float
    high: float


@dataclass(frozen=True)
class LatencyReport:
    """What a log says.

    Attributes:
        utterances: how many instances it holds.
        empty: how many of them hold no unit: they have no latency, and no mean contains them.
        scores: by metric, in the order of tables; absent where the log does not know it.
    """

    utterances: int
    empty: int
    scores: dict[str, LatencyScore]

    def value(self, metric: str) -> float | None:
        """A corpus value; None where the log does not have it."""
        return self.scores[metric].value if metric in self.scores else None

    def values(self) -> dict[str, float]:
        """All corpus values by metric."""
        return {metric: score.value for metric, score in self.scores.items()}

    @property
    def degenerate(self) -> bool:
        """Whether latency and share of words written in time contradict each other, as OmniSTEval tests it.

        A system that writes nearly all at the end has a small lag over the few words that it wrote in time.
        """
        in_time, expected = self.value("words_in_time"), self.value("words_in_time_expected")
        return in_time is not None and expected is not None and abs(expected - in_time) > DEGENERATE_ABOVE


def utterance_latency(instance: Instance, unit: Unit = "word") -> dict[str, float]:
    """All metrics of one utterance on every clock that was logged; absent where it has no such value."""
    scores: dict[str, float] = {}
    length, reference = instance.source_length, instance.reference_length(unit)
    try:
        for suffix, attribute in CLOCKS.items():
            times: tuple[float, ...] = getattr(instance, attribute)
            for name, metric in METRICS.items() if times else ():
                value = metric(times, length, reference)
                if value is not None:
                    scores[name + suffix] = value
        if PAPER_KEY in instance.extra:
            scores["laal_paper"] = laal(instance.extra[PAPER_KEY], length, reference)
    except (ValueError, TypeError) as error:
        raise ValueError(f"instance {instance.index}: {error}") from error
    return scores


def _check_clocks(instances: Sequence[Instance]) -> None:
    for attribute in CLOCKS.values():
        without = [i for i in instances if i.delays and not getattr(i, attribute)]
        if 0 < len(without) < sum(bool(i.delays) for i in instances):
            raise ValueError(f"{len(without)} instances have no {attribute}, others have (first: {without[0].index})")


def score_latency(instances: Sequence[Instance], unit: Unit = "word", resamples: int = RESAMPLES) -> LatencyReport:
    """Scores of a log, each utterance with equal weight as in SimulEval.

    `words_in_time` and `words_in_time_expected` (percent) are OmniSTEval's SWF and EFSW, see
    :attr:`LatencyReport.degenerate`.
    """
    if not instances:
        raise ValueError("there is no instance to score")
    _check_clocks(instances)
    values = [utterance_latency(instance, unit) for instance in instances]
    known = {name for row in values for name in row}
    columns: dict[str, list[_Part]] = {
        name: [(row[name], 1.0) if name in row else _NOTHING for row in values]
        for name in (*(metric + suffix for suffix in CLOCKS for metric in METRICS), "laal_paper")
        if name in known
    }
    columns["length_ratio"] = [(float(len(i.delays)), float(i.reference_length(unit))) for i in instances]
    if all(i.compute is not None for i in instances):
        columns["rtf"] = [(i.compute or 0.0, i.source_length) for i in instances]
    columns["words_in_time"] = [
        (100.0 * sum(d < i.source_length for d in i.delays), float(len(i.delays))) for i in instances
    ]
    columns["words_in_time_expected"] = [
        (100.0 * max(0.0, i.source_length - row["yaal"]), i.source_length) if "yaal" in row else _NOTHING
        for i, row in zip(instances, values, strict=True)
    ]
    empty = sum(not i.delays for i in instances)
    return LatencyReport(len(instances), empty, _scores(columns, resamples))


def _scores(columns: Mapping[str, Sequence[_Part]], resamples: int) -> dict[str, LatencyScore]:
    """Sum over sum of every column that has anything below the line."""
    parts = np.array(list(columns.values()))  # (metrics, utterances, 2)
    over, under = parts[..., 0].T, parts[..., 1].T
    intervals = ratio_intervals(over, under, resamples=resamples)
    return {
        name: LatencyScore(float(over[:, m].sum() / under[:, m].sum()), int((under[:, m] > 0).sum()), *intervals[m])
        for m, name in enumerate(columns)
        if under[:, m].any()
    }


def write_details(path: Path, instances: Iterable[Instance], unit: Unit = "word") -> None:
    """Writes one tab-separated line per utterance with its own value of every metric."""
    rows = [(instance, utterance_latency(instance, unit)) for instance in instances]
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    lines = ["\t".join(("index", "recording", "units", "reference_units", "source_length", *names))]
    for instance, row in rows:
        sizes = len(units_of(instance.prediction, unit)), instance.reference_length(unit)
        shown = (f"{row[name]:.3f}" if name in row else "" for name in names)
        fields = (instance.index, instance.recording, *sizes, f"{instance.source_length:.3f}", *shown)
        lines.append("\t".join(map(str, fields)))
    write_text_atomically(path, "\n".join(lines) + "\n")
