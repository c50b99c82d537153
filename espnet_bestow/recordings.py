"""Rows that share a recording: read once, kept in one batch, given to one process.

A multitask corpus asks for a transcript, a translation and answers of the same recording. The model encodes a
recording once for all its rows in a batch, so it pays not to tear them apart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain, groupby, pairwise
from typing import Any

import numpy as np
from espnet2.fileio.sound_scp import SoundScpReader
from espnet2.train.dataset import AdapterForSoundScpReader, ESPnetDataset

RecordingOf = Callable[[str], str]  # id of a row -> what tells its recording from others
CostOf = Callable[[str], float]  # id of a row -> what it costs the connector and the LLM; 1 on average

# Encoding a recording costs about as much as so many average rows cost the connector and the LLM. Only the balance of
# processes depends on it: a rough figure for the mini recipe; for larger LLMs it is less, for longer audio more.
RECORDING_COST = 1.0


class RememberedRecordings(Mapping[str, Any]):
    """ESPnet's audio loader, except that a recording is decoded once for rows that come one after the other."""

    def __init__(self, loader: AdapterForSoundScpReader):
        self.loader = loader
        self.path: str | None = None
        self.audio: Any = None

    def __getitem__(self, key: str) -> Any:
        """The samples of row ``key``."""
        path = self.loader.loader.get_path(key)
        if path != self.path:
            self.audio = self.loader[key]
            self.path = path
        return self.audio

    def __contains__(self, key: object) -> bool:
        return key in self.loader.loader

    def __iter__(self) -> Iterator[str]:
        return iter(self.loader)

    def __len__(self) -> int:
        return len(self.loader)


def remember_recordings(dataset: Any) -> RecordingOf:
    """Lets a dataset read neighbouring rows of one recording once; returns which recording a row is about.

    Of audio that is not listed file by file (archives, several files per row) every row counts as its own recording.
    """
    loaders = dataset.loader_dict if isinstance(dataset, ESPnetDataset) else {}
    loader = loaders.get("speech")
    if not isinstance(loader, AdapterForSoundScpReader) or not isinstance(loader.loader, SoundScpReader):
        return str
    if loader.loader.multi_columns:
        return str
    loaders["speech"] = RememberedRecordings(loader)
    return loader.loader.get_path


def costs_of_texts(dataset: Any) -> CostOf:
    """What a row costs, by the letters of its instruction and answer: a long answer takes a process longer."""
    loaders = dataset.loader_dict if isinstance(dataset, ESPnetDataset) else {}
    answers, prompts = (texts if isinstance(texts := loaders.get(name), dict) else {} for name in ("text", "prompt"))
    if not answers:
        return lambda _: 1.0
    letters = {row: len(answer) + len(prompts.get(row, "")) for row, answer in answers.items()}
    average = sum(letters.values()) / len(letters) or 1.0
    return lambda row: letters[row] / average


def together(rows: Iterable[str], recording_of: RecordingOf) -> list[list[str]]:
    """The rows about each recording, in the order in which recordings come first.

    Who sorts rows by the length of recordings mixes those of equally long ones.
    """
    recordings: dict[str, list[str]] = {}
    for row in rows:
        recordings.setdefault(recording_of(row), []).append(row)
    return list(recordings.values())


def whole_recordings(rows: Iterable[str], count: int, recording_of: RecordingOf, least: int = 1) -> list[list[str]]:
    """About ``count`` batches of rows in this order, cut where a recording ends instead of after equal numbers.

    None has fewer than ``least`` rows, unless all rows together are fewer.
    """
    recordings = together(rows, recording_of)
    rows = [*chain(*recordings)]
    ends = [*accumulate(map(len, recordings))]
    size = len(rows) / count
    cuts = [0]
    for number in range(1, count):
        wanted = round(number * size)
        after = int(np.searchsorted(ends, wanted))
        nearest = min(ends[max(after - 1, 0) : after + 1], key=lambda end: abs(end - wanted))
        # A recording with more rows than a batch has is cut all the same.
        for cut in (nearest, wanted) if abs(nearest - wanted) <= size / 2 else (wanted,):
            if cut - cuts[-1] >= least and len(rows) - cut >= least:
                cuts.append(cut)
                break
    return [list(rows[start:end]) for start, end in pairwise([*cuts, len(rows)])]


def share(
    batch: Sequence[str], rank: int, world: int, recording_of: RecordingOf, cost_of: CostOf = lambda _: 1.0
) -> list[str]:
    """The rows of process ``rank``: whole recordings, of about the same cost everywhere, and never none.

    Rows keep their order. A batch of fewer recordings than processes is cut into equal numbers of neighbouring rows.
    """
    recordings = [list(group) for _, group in groupby(batch, recording_of)]
    if len(recordings) < world:
        return list(batch[len(batch) * rank // world : len(batch) * (rank + 1) // world])
    each = [RECORDING_COST + sum(map(cost_of, rows)) for rows in recordings]
    costs, own = [0.0] * world, set()
    # Whoever has least takes the largest that is left.
    for number in sorted(range(len(recordings)), key=lambda number: -each[number]):
        owner = costs.index(min(costs))
        costs[owner] += each[number]
        if owner == rank:
            own.add(number)
    return [row for number, rows in enumerate(recordings) if number in own for row in rows]
