"""Kaldi-style data directories: read, check, select and write them."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from espnet_bestow.audio import Span
from espnet_bestow.datadir.source import AudioSource

TABLES = ("wav.scp", "utt2spk", "text", "prompt", "utt2task", "src_text", "utt2num_samples")
REJECTED = "rejected.tsv"
_BLANKS = re.compile(r"[ \t]+")


class DataDirError(ValueError):
    """A data directory that cannot be read; the message names file, line and value."""


@dataclass(frozen=True)
class Problem:
    """Why one row cannot be used: a line of ``rejected.tsv``."""

    uid: str
    file: str
    problem: str
    value: str

    def __str__(self) -> str:
        return f"utterance '{self.uid}': {self.file}: {self.problem} ({self.value})"


@dataclass
class DataDir:
    """The tables of a directory by file name, each a mapping from row id to value.

    Attributes:
        path: Where it was read from.
        tables: Only the files that exist, e.g. ``tables["text"]["utt1"] == "hello"``.
        segments: Row id to (recording id, span) where the directory has a ``segments`` file;
            the keys of ``wav.scp`` are recordings then.
    """

    path: Path
    tables: dict[str, dict[str, str]]
    segments: dict[str, tuple[str, Span]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, renamed: dict[str, str] | None = None) -> "DataDir":
        """Read the known tables of a directory; ``wav.scp`` and ``text`` must exist.

        Args:
            path: The directory.
            renamed: Tables that must be read from another file, e.g. ``{"text": "text.tc.de"}``.
        """
        path, renamed = Path(path), renamed or {}
        if not path.is_dir():
            raise DataDirError(f"{path}: no such data directory")
        files = {name: path / renamed.get(name, name) for name in TABLES}
        for name in {"wav.scp": "", "text": "", **renamed}:
            if not files[name].is_file():
                raise DataDirError(f"{files[name]}: missing file")
        tables = {name: read_table(file) for name, file in files.items() if file.is_file()}
        segments = {}
        if (path / "segments").is_file():
            segments = _read_segments(path / "segments")
        return cls(path, tables, segments)

    def uids(self) -> list[str]:
        """All row ids that any table knows, sorted."""
        known: set[str] = set()
        for _, rows in self._row_tables():
            known.update(rows)
        return sorted(known)

    def sources(self) -> dict[str, AudioSource]:
        """Audio of every row that has some."""
        recordings = self.tables["wav.scp"]
        if not self.segments:
            return {uid: AudioSource(location) for uid, location in recordings.items()}
        return {
            uid: AudioSource(recordings[recording], span)
            for uid, (recording, span) in self.segments.items()
            if recording in recordings
        }

    def table(self, name: str) -> dict[str, str]:
        """A table that must be there."""
        if name not in self.tables:
            raise DataDirError(f"{self.path / name}: missing file (stage 3 completes what can be)")
        return self.tables[name]

    def check_ids(self) -> None:
        """An error that counts the rows which some table lacks, and names the first."""
        if problems := self.id_problems():
            raise DataDirError(f"{self.path}: {count_problems(problems)}; the first is {problems[0]}")

    def id_problems(self) -> list[Problem]:
        """One problem for every (row, table) where a table lacks a row that another has."""
        tables = self._row_tables()
        problems = []
        for uid in self.uids():
            holders = [name for name, rows in tables if uid in rows]
            problems += [
                Problem(uid, str(self.path / name), f"id not in {name}", f"in {' '.join(holders)}")
                for name, rows in tables
                if uid not in rows
            ]
        return problems

    def select(self, uids: Iterable[str]) -> "DataDir":
        """The same directory with only some rows (without ``segments``: rows become utterances)."""
        if self.segments:
            raise DataDirError(f"{self.path}: cut the segments into utterances first")
        keep = set(uids)
        tables = {
            name: {uid: value for uid, value in rows.items() if uid in keep} for name, rows in self.tables.items()
        }
        return DataDir(self.path, tables)

    def write(self, path: str | Path) -> None:
        """Write all tables, sorted, and ``spk2utt``."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            if name in self.tables:
                write_table(path / name, self.tables[name])
            else:
                # A file left by an earlier run would bring rows back that are gone.
                (path / name).unlink(missing_ok=True)
        speakers: dict[str, list[str]] = {}
        for uid, speaker in sorted(self.tables.get("utt2spk", {}).items()):
            speakers.setdefault(speaker, []).append(uid)
        write_table(path / "spk2utt", {spk: " ".join(ids) for spk, ids in speakers.items()})

    def _row_tables(self) -> list[tuple[str, dict]]:
        """Tables keyed by row: with segments, ``wav.scp`` is keyed by recording."""
        tables: list[tuple[str, dict]] = list(self.tables.items())
        if self.segments:
            tables = [("segments", self.sources()), *(t for t in tables if t[0] != "wav.scp")]
        return tables


def read_table(path: str | Path) -> dict[str, str]:
    """Read ``<key> <value ...>`` lines; a value may be empty.

    Raises:
        DataDirError: A key comes twice, or the file is not UTF-8.
    """
    return table_of(table_lines(path), path)


def table_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """The lines of a table that are not empty, with their numbers; an error where they are not UTF-8."""
    with Path(path).open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            try:
                line = raw.decode("utf-8").strip(" \t\r\n")
            except UnicodeDecodeError as error:
                raise DataDirError(f"{path}:{number}: not UTF-8 ({error.reason})") from error
            if line:
                yield number, line


def table_of(lines: Iterable[tuple[int, str]], path: str | Path) -> dict[str, str]:
    """Keys and values of the lines of a table; an error where a key comes twice."""
    table: dict[str, str] = {}
    for number, line in lines:
        key, *value = _BLANKS.split(line, maxsplit=1)
        if key in table:
            raise DataDirError(f"{path}:{number}: duplicated key '{key}'")
        table[key] = value[0] if value else ""
    return table


def write_table(path: str | Path, table: dict[str, str]) -> None:
    """Write a table sorted by key, as one whole (never a half-written file)."""
    partial = Path(f"{path}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as out:
        for key in sorted(table):
            out.write(f"{key} {table[key]}\n" if table[key] else f"{key}\n")
    partial.replace(path)


def count_problems(problems: Iterable[Problem]) -> str:
    """``"3 empty text, 1 truncated file"``: the most frequent kind first."""
    counts = Counter(problem.problem for problem in problems)
    return ", ".join(f"{count} {kind}" for kind, count in counts.most_common())


def write_rejected(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write the table of rejected rows with a header line."""
    rows = [("utterance", "file", "problem", "value")]
    rows += [(p.uid, p.file, p.problem, p.value) for p in problems]
    lines = ["\t".join(re.sub(r"\s+", " ", cell) for cell in row) for row in rows]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_rejected(path: str | Path) -> list[Problem]:
    """Read what ``write_rejected`` wrote; a missing file means no problems."""
    if not Path(path).is_file():
        return []
    lines = Path(path).read_text(encoding="utf-8").split("\n")[1:]
    return [Problem(*line.split("\t")) for line in lines if line]


def _read_segments(path: Path) -> dict[str, tuple[str, Span]]:
    segments = {}
    for uid, value in read_table(path).items():
        try:
            recording, start, end = value.split()
            # Kaldi writes -1 for "up to the end of the recording".
            span = Span(float(start), None if float(end) < 0 else float(end))
        except ValueError as error:
            message = f"{path}: '{uid} {value}' is not '<utt> <recording> <start> <end>'"
            raise DataDirError(message) from error
        segments[uid] = (recording, span)
    return segments
