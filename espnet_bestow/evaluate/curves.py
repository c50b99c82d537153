"""`curves.json`: latency-quality points of a sweep, and what one reads off them.

A point is one system decoding one test set with one policy and one set of options. Points of the same system, policy
and options but for the one that is swept make a line.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path

import numpy as np

from espnet_bestow.evaluate.results import locked, read_entries, write_text_atomically

OFFLINE = "offline"
Option = str | int | float | bool


@dataclass(frozen=True)
class CurvePoint:
    """Quality and latency of one run.

    Attributes:
        system: name of the model.
        task: as in `evaluate.tasks`, e.g. `asr_en`.
        test_set: name of the data.
        policy: name of the read-write policy; `offline` is drawn as a dashed level.
        options: of the policy, as a user would set them.
        swept: the option that varies along a line; empty for a lone point.
        metric: of quality, e.g. `wer`.
        value: of the metric.
        latency: by metric as in `latency_scoring`, e.g. `laal`, `laal_ca`, `yaal`; milliseconds.
        n: utterances.
        command: what made the point.
        low: of the 95 % interval of `value`, where it is known.
        high: of the same interval.
        empty: utterances with an empty answer, which no latency contains.
    """

    system: str
    task: str
    test_set: str
    policy: str
    options: Mapping[str, Option]
    swept: str
    metric: str
    value: float
    latency: Mapping[str, float]
    n: int
    command: str
    low: float | None = None
    high: float | None = None
    empty: int = 0

    @property
    def key(self) -> tuple[str, str, str, str, str, str]:
        """A new point replaces the old one of the same key."""
        options = json.dumps(dict(self.options), sort_keys=True)
        return self.system, self.task, self.test_set, self.policy, options, self.metric

    @property
    def position(self) -> Option | None:
        """Where on its line the point is."""
        return self.options[self.swept] if self.swept else None

    def lag(self, latency: str) -> float | None:
        """A latency; None where nothing was written or nobody measured it."""
        return self.latency.get(latency)


@dataclass(frozen=True)
class Line:
    """Points of one sweep, in the order of the swept option.

    Attributes:
        system: of all points.
        policy: of all points.
        fixed: the options that all points share.
        points: in order.
    """

    system: str
    policy: str
    fixed: Mapping[str, Option] = field(default_factory=dict)
    points: tuple[CurvePoint, ...] = ()

    @property
    def label(self) -> str:
        """Name in a legend."""
        options = ", ".join(f"{name} {value}" for name, value in self.fixed.items())
        swept = self.points[0].swept if self.points else ""
        name = f"{self.system} {self.policy}" + (f" by {swept}" if swept else "")
        return f"{name} ({options})" if options else name

    def measured(self, latency: str) -> tuple[list[float], list[float]]:
        """Latencies and values of the points that have the latency."""
        pairs = [(lag, p.value) for p in self.points if (lag := p.lag(latency)) is not None]
        return [lag for lag, _ in pairs], [value for _, value in pairs]

    def value_at(self, latency: str, lag: float) -> float | None:
        """Quality at a latency, on the straight way between two points; None outside of the line."""
        lags, values = self.measured(latency)
        if not lags or not min(lags) <= lag <= max(lags):
            return None
        order = np.argsort(lags, kind="stable")
        return float(np.interp(lag, np.array(lags)[order], np.array(values)[order]))


def lines(points: Iterable[CurvePoint]) -> list[Line]:
    """Groups points of one task and metric into lines, in the order in which they first appear."""
    groups: dict[tuple[str, str, str, str], list[CurvePoint]] = {}
    for point in points:
        fixed = {name: value for name, value in point.options.items() if name != point.swept}
        key = point.system, point.policy, point.swept, json.dumps(fixed, sort_keys=True)
        groups.setdefault(key, []).append(point)
    ordered = []
    for (system, policy, _, shared), members in groups.items():
        # A line holds numbers in their order; anything else stays as it came.
        numeric = all(isinstance(p.position, int | float) for p in members)
        members = sorted(members, key=lambda p: float(p.position or 0)) if numeric else members
        ordered.append(Line(system, policy, json.loads(shared), tuple(members)))
    return ordered


def by_task(points: Iterable[CurvePoint]) -> dict[tuple[str, str, str], list[CurvePoint]]:
    """Groups points that may stand in one panel: same task, test set and metric."""
    groups: dict[tuple[str, str, str], list[CurvePoint]] = {}
    for point in points:
        groups.setdefault((point.task, point.test_set, point.metric), []).append(point)
    return groups


@dataclass(frozen=True)
class Comparison:
    """One point of a line against the other line at the same latency."""

    point: CurvePoint
    lag: float
    other: float

    @property
    def difference(self) -> float:
        """Value of the point minus that of the other line."""
        return self.point.value - self.other


def compare(line: Line, other: Line, latency: str = "laal") -> list[Comparison]:
    """Each point of `line` against `other` at equal latency, where `other` reaches that far."""
    found = []
    for point in line.points:
        lag = point.lag(latency)
        value = None if lag is None else other.value_at(latency, lag)
        if lag is not None and value is not None:
            found.append(Comparison(point, lag, value))
    return found


_REQUIRED = tuple(f.name for f in fields(CurvePoint))[:11]
_KNOWN = tuple(f.name for f in fields(CurvePoint))
_NUMBERS = ("value", "low", "high")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _parse(entry: object, place: str) -> CurvePoint:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected an object, got {entry!r}")
    if missing := [name for name in _REQUIRED if name not in entry]:
        raise ValueError(f"{place}: missing {missing}")
    if unknown := [name for name in entry if name not in _KNOWN]:
        raise ValueError(f"{place}: unknown keys {unknown}; known: {list(_KNOWN)}")
    for name in _NUMBERS:
        if entry.get(name) is not None and not _is_number(entry[name]):
            raise ValueError(f"{place}: {name} must be a number, got {entry[name]!r}")
    for name in ("options", "latency"):
        if not isinstance(entry[name], dict):
            raise ValueError(f"{place}: {name} must be an object, got {entry[name]!r}")
    for name, value in entry["latency"].items():
        if not _is_number(value):
            raise ValueError(f"{place}: latency {name} must be a number, got {value!r}")
    if entry["swept"] and entry["swept"] not in entry["options"]:
        raise ValueError(f"{place}: swept option {entry['swept']!r} is not among {list(entry['options'])}")
    return CurvePoint(**entry)


def read_points(path: Path) -> list[CurvePoint]:
    """Reads `curves.json`; a file that does not exist yet holds no point."""
    return [_parse(entry, f"{path}: entry {i}") for i, entry in enumerate(read_entries(path, "points"))]


def _entry(point: CurvePoint) -> dict[str, object]:
    entry = {name: value for name, value in asdict(point).items() if value is not None}
    entry["latency"] = {name: round(value, 3) for name, value in point.latency.items()}
    return entry | {name: round(entry[name], 4) for name in _NUMBERS if name in entry}


def write_points(path: Path, points: Sequence[CurvePoint]) -> None:
    """Writes `curves.json`, readable by eye and by `diff`."""
    text = json.dumps([_entry(point) for point in points], indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


def add_points(path: Path, points: Sequence[CurvePoint]) -> list[CurvePoint]:
    """Merges points into `curves.json` and returns all it now holds."""
    with locked(path):
        merged = {point.key: point for point in read_points(path)}
        merged.update({point.key: point for point in points})
        write_points(path, list(merged.values()))
        return list(merged.values())
