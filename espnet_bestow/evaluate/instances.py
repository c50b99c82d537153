"""`instances.log`: SimulEval's log of a simultaneous decoding, one JSON object per utterance and line.

SimulEval and OmniSTEval rescore these files, and we rescore theirs. All times are milliseconds. Beside SimulEval's keys
ours may stand, which other tools ignore:

    clock       when each unit was written by a real clock (`latency.computation_aware_clock`)
    compute     all time spent on the utterance

SimulEval's own `elapsed` is another quantity (the delay of a unit plus *all* compute before it) and is never read as a
clock.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

LOG_NAME = "instances.log"
Unit = Literal["word", "char"]
UNITS: tuple[Unit, ...] = ("word", "char")

_TIMES = ("delays", "elapsed", "clock")
_REQUIRED = ("index", "prediction", "delays", "reference", "source_length")
_DERIVED = ("prediction_length",)

logger = logging.getLogger(__name__)


def units_of(text: str, unit: Unit) -> list[str]:
    """What latency is counted in: words, or characters other than spaces."""
    return text.split() if unit == "word" else list("".join(text.split()))


@dataclass(frozen=True)
class Instance:
    """One utterance as it was decoded.

    Attributes:
        index: position in the test set; unique in a log.
        prediction: what was written.
        delays: audio consumed when each unit was written.
        reference: what should have been written.
        source_length: length of the audio.
        source: where the audio is; SimulEval writes soundfile's lines about it, the path first.
        elapsed: SimulEval's, as logged; empty where nobody logged it.
        clock: when each unit was written by a real clock; empty where nobody measured it.
        compute: all time spent on the utterance.
        extra: any other key of the log, kept as it is.
    """

    index: int
    prediction: str
    delays: tuple[float, ...]
    reference: str
    source_length: float
    source: str | tuple[str, ...] = ""
    elapsed: tuple[float, ...] = ()
    clock: tuple[float, ...] = ()
    compute: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def recording(self) -> str:
        """Name of the audio file, without folders and ending."""
        return Path(self.source if isinstance(self.source, str) else next(iter(self.source), "")).stem

    def reference_length(self, unit: Unit) -> int:
        """Units of the reference; an empty one counts as 1, as in SimulEval."""
        return max(1, len(units_of(self.reference, unit)))

    def check(self, unit: Unit) -> None:
        """Raises unless every unit of the prediction has its times, in order."""
        count = len(units_of(self.prediction, unit))
        if not self.source_length > 0:
            raise ValueError(f"instance {self.index}: source_length must be positive, got {self.source_length}")
        for name in _TIMES:
            times: tuple[float, ...] = getattr(self, name)
            if len(times) != count and (times or name == "delays"):
                raise ValueError(
                    f"instance {self.index}: {count} {unit}s were written but there are {len(times)} {name}"
                    f" (prediction {self.prediction[:60]!r})"
                )
            for before, after in pairwise(times):
                if after < before:
                    raise ValueError(f"instance {self.index}: {name} go back from {before} to {after}")

    def to_json(self) -> str:
        """The line of this instance in a log."""
        entry: dict[str, Any] = {
            "index": self.index,
            "prediction": self.prediction,
            "delays": self.delays,
            # Where SimulEval did not run, the true clock is what its computation-aware scores should be made of.
            "elapsed": self.elapsed or self.clock,
            "prediction_length": len(self.delays),
            "reference": self.reference,
            "source": self.source,
            "source_length": self.source_length,
        }
        if self.delays and not entry["elapsed"]:
            del entry["elapsed"]  # an empty list of times beside written units is an error to OmniSTEval
        if self.clock:
            entry["clock"] = self.clock
        if self.compute is not None:
            entry["compute"] = self.compute
        return json.dumps({**entry, **self.extra}, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str) -> "Instance":
        """Reads one line; unknown keys are kept."""
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError(f"expected an object, got {line[:60]!r}")
        if missing := [name for name in _REQUIRED if name not in entry]:
            raise ValueError(f"missing {missing} in {line[:60]!r}")
        for name in _TIMES:
            entry[name] = tuple(_number(name, time) for time in _list(name, entry.get(name, ())))
        for name in ("prediction", "reference"):
            if not isinstance(entry[name], str):
                raise ValueError(f"{name} must be a text, got {entry[name]!r}")
        if not isinstance(entry["index"], int) or isinstance(entry["index"], bool):
            raise ValueError(f"index must be an integer, got {entry['index']!r}")
        if entry["elapsed"] == entry["clock"]:
            entry["elapsed"] = ()  # it was written for other tools only
        entry["source_length"] = _number("source_length", entry["source_length"])
        if isinstance(entry.get("source"), list):
            entry["source"] = tuple(entry["source"])
        if entry.get("compute") is not None:
            entry["compute"] = _number("compute", entry["compute"])
        known = {name: entry.pop(name) for name in _KNOWN if name in entry}
        return cls(**known, extra={name: value for name, value in entry.items() if name not in _DERIVED})


_KNOWN = tuple(f.name for f in fields(Instance) if f.name != "extra")


def _list(name: str, value: object) -> Sequence[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list, got {value!r}")
    return value


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    if not isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def _parse(path: Path, text: str, unit: Unit | None) -> Iterator[Instance]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            instance = Instance.from_json(line)
            if unit is not None:
                instance.check(unit)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        yield instance


def _by_index(instances: Iterable[Instance], place: str) -> list[Instance]:
    found: dict[int, Instance] = {}
    for instance in instances:
        if instance.index in found:
            raise ValueError(f"{place}: index {instance.index} appears a second time")
        found[instance.index] = instance
    return [found[index] for index in sorted(found)]


def read_instances(path: Path, unit: Unit = "word") -> list[Instance]:
    """Reads a log, sorted by index; anything wrong is an error that names the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    instances = _by_index(_parse(path, text, unit), str(path))
    if not instances:
        raise ValueError(f"{path}: the log holds no instance")
    return instances


def merge_instances(paths: Sequence[Path], unit: Unit = "word") -> list[Instance]:
    """Reads the logs of several jobs as one; indices must not repeat."""
    return _by_index((i for path in paths for i in read_instances(path, unit)), " + ".join(map(str, paths)))


def write_instances(path: Path, instances: Iterable[Instance]) -> None:
    """Writes a whole log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{instance.to_json()}\n" for instance in instances), encoding="utf-8")


class InstanceLog:
    """A log that grows while decoding runs, and goes on where a killed run left it.

    Args:
        path: the log. What it already holds is in `done`, by index; a line that a kill left half-written is cut off.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_bytes() if path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            logger.warning("%s: cut off a half-written line of %d bytes", path, len(text) - len(whole))
            path.write_bytes(whole)
        self.done = {i.index: i for i in _by_index(_parse(path, whole.decode("utf-8"), None), str(path))}
        self._file = path.open("a", encoding="utf-8")

    def add(self, instance: Instance) -> None:
        """Appends an instance; it survives whatever happens to this process afterwards."""
        if instance.index in self.done:
            raise ValueError(f"{self.path}: index {instance.index} is already in the log")
        self._file.write(f"{instance.to_json()}\n")
        self._file.flush()
        self.done[instance.index] = instance

    def close(self) -> None:
        """No more to add."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
