"""Per-utterance statistics of one metric, and the corpus score they sum up to."""

from dataclasses import dataclass

from numpy.typing import NDArray

from espnet_bestow.evaluate.bootstrap import RESAMPLES, ValueOf, confidence_interval


@dataclass(frozen=True)
class Score:
    """A corpus score in percent (0 to 100; error rates may exceed it) with its 95 % interval."""

    metric: str
    value: float
    n: int
    low: float
    high: float
    signature: str = ""


@dataclass(frozen=True)
class Tally:
    """What N utterances contribute to a metric.

    Attributes:
        metric: Name as it appears in result files.
        statistics: (N, M); a corpus value depends on their sum over utterances only.
        value_of: Maps summed statistics (R, M) to values (R,).
        columns: Names of the M statistics, where a reader of the details would want them.
        signature: How the metric was configured, where it has such a thing.
    """

    metric: str
    statistics: NDArray
    value_of: ValueOf
    columns: tuple[str, ...] = ()
    signature: str = ""

    def utterance_values(self) -> NDArray:
        """The metric of each utterance alone, (N,)."""
        return self.value_of(self.statistics)

    def score(self, resamples: int = RESAMPLES) -> Score:
        """The corpus score with its bootstrap interval."""
        value = float(self.value_of(self.statistics.sum(axis=0, keepdims=True))[0])
        low, high = confidence_interval(self.statistics, self.value_of, resamples=resamples)
        return Score(self.metric, value, len(self.statistics), low, high, self.signature)

    def describe(self, index: int, value: float) -> str:
        """One utterance's entry in the details file, e.g. `wer=25.00[sub=1 del=0 ins=0 ref=4]`."""
        text = f"{self.metric}={value:.2f}"
        if self.columns:
            row = self.statistics[index].tolist()
            pairs = " ".join(f"{k}={v}" for k, v in zip(self.columns, row, strict=True))
            text += f"[{pairs}]"
        return text
