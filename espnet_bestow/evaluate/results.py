"""`results.json`: a list of scores that scoring runs add to."""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from espnet_bestow.evaluate.tally import Score


@dataclass(frozen=True)
class ResultRow:
    """One score with everything needed to print and to reproduce it."""

    system: str
    task: str
    test_set: str
    metric: str
    value: float
    n: int
    low: float
    high: float
    command: str
    signature: str = ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """A new row replaces the old one of the same key."""
        return self.system, self.task, self.test_set, self.metric


@dataclass(frozen=True)
class Origin:
    """Where a set of scores comes from."""

    system: str
    test_set: str
    command: str

    def row(self, task: str, score: Score) -> ResultRow:
        """The row of one score; four decimals are more than any test set supports."""
        value, low, high = (round(x, 4) for x in (score.value, score.low, score.high))
        return ResultRow(
            self.system, task, self.test_set, score.metric, value, score.n, low, high,
            self.command, score.signature,
        )  # fmt: skip


_TYPES: dict[str, tuple[type, ...]] = {
    "value": (int, float),
    "low": (int, float),
    "high": (int, float),
    "n": (int,),
}
_KNOWN = tuple(field.name for field in fields(ResultRow))


def _parse_row(entry: object, place: str) -> ResultRow:
    if not isinstance(entry, dict):
        raise ValueError(f"{place}: expected an object, got {entry!r}")
    if missing := [name for name in _KNOWN[:-1] if name not in entry]:
        raise ValueError(f"{place}: missing {missing} in {entry!r}")
    if unknown := [name for name in entry if name not in _KNOWN]:
        raise ValueError(f"{place}: unknown keys {unknown}; known: {list(_KNOWN)}")
    for name, value in entry.items():
        types = _TYPES.get(name, (str,))
        if not isinstance(value, types) or isinstance(value, bool):
            raise ValueError(f"{place}: {name} must be {types[0].__name__}, got {value!r}")
    return ResultRow(**entry)


def read_entries(path: Path, what: str) -> list[object]:
    """The list in a JSON file of results or points (`what`); a file that does not exist yet holds none."""
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of {what}, got {type(entries).__name__}")
    return entries


def read_results(path: Path) -> list[ResultRow]:
    """Reads `results.json`; a file that does not exist yet holds no rows."""
    return [_parse_row(entry, f"{path}: entry {i}") for i, entry in enumerate(read_entries(path, "results"))]


def merge_rows(old: Sequence[ResultRow], new: Sequence[ResultRow]) -> list[ResultRow]:
    """Old rows in their order, those scored again replaced in place, new ones at the end."""
    merged = {row.key: row for row in old}
    merged.update({row.key: row for row in new})
    return list(merged.values())


def _entry(row: ResultRow) -> dict[str, str | int | float]:
    entry = asdict(row)
    if not row.signature:
        del entry["signature"]
    return entry


def write_text_atomically(path: Path, text: str) -> None:
    """Replaces a file in one step: a full disk or a kill leaves the old one whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp hides its file from everyone else
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_results(path: Path, rows: Sequence[ResultRow]) -> None:
    """Writes `results.json`, readable by eye and by `diff`."""
    text = json.dumps([_entry(row) for row in rows], indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keeps jobs that add to a file at the same time from losing each other's rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def add_results(path: Path, rows: Sequence[ResultRow]) -> list[ResultRow]:
    """Merges rows into `results.json` and returns all it now holds."""
    with locked(path):
        merged = merge_rows(read_results(path), rows)
        write_results(path, merged)
    return merged
