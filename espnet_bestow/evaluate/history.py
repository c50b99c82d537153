"""`history.json`: what a training run logged after each epoch."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SIDES = ("train", "valid")


@dataclass(frozen=True)
class Epoch:
    """Mean statistics of one epoch."""

    number: int
    train: dict[str, float]
    valid: dict[str, float]

    def side(self, name: str) -> dict[str, float]:
        """Statistics of `train` or `valid`."""
        return {"train": self.train, "valid": self.valid}[name]


@dataclass(frozen=True)
class History:
    """All epochs of one training stage."""

    stage: str
    epochs: Sequence[Epoch]

    def statistics(self) -> list[str]:
        """Names of all statistics logged on either side, sorted."""
        return sorted({key for epoch in self.epochs for s in SIDES for key in epoch.side(s)})

    def curve(self, side: str, key: str) -> tuple[list[int], list[float]]:
        """Epoch numbers and values of one statistic, where it was logged and is finite."""
        points = [(e.number, e.side(side)[key]) for e in self.epochs if key in e.side(side)]
        finite = [(number, value) for number, value in points if math.isfinite(value)]
        return [number for number, _ in finite], [value for _, value in finite]


def _parse_side(record: dict, side: str, place: str) -> dict[str, float]:
    statistics = record.get(side, {})
    if not isinstance(statistics, dict):
        raise ValueError(f"{place}: {side} must be an object, got {statistics!r}")
    for key, value in statistics.items():
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise ValueError(f"{place}: {side}.{key} must be a number, got {value!r}")
    return {key: float(value) for key, value in statistics.items() if value is not None}


def read_history(path: Path) -> History:
    """Reads one `history.json`; the stage is named after its directory."""
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of epochs, got {type(records).__name__}")
    epochs = []
    for i, record in enumerate(records):
        place = f"{path}: entry {i}"
        if not isinstance(record, dict) or not isinstance(record.get("epoch"), int):
            raise ValueError(f"{place}: expected an object with an integer 'epoch', got {record!r}")
        train, valid = (_parse_side(record, side, place) for side in SIDES)
        epochs.append(Epoch(record["epoch"], train, valid))
    return History(path.parent.name, epochs)


def read_histories(exp: Path) -> list[History]:
    """Histories of every training stage below an experiment directory that has an epoch."""
    histories = [read_history(path) for path in sorted(exp.glob("*/history.json"))]
    return [history for history in histories if history.epochs]
