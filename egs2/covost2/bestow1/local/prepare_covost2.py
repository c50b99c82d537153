"""CoVoST 2 on Common Voice 4 as data directories: of each clip its translations and its transcript."""

import argparse
import csv
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.datadir import DataDirError, Problem, Row, default_prompt, write_rows
from espnet_bestow.evaluate.quality import bleu_metric

SPLITS = ("train", "dev", "test")
# CoVoST 2 trains with more clips than Common Voice does.
SPLIT_OF = {"train": "train", "train_covost": "train", "dev": "dev", "test": "test"}


@dataclass(frozen=True)
class Direction:
    """From which language into which, in Common Voice's codes (``zh-CN``)."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source}-{self.target}"

    @property
    def asr_task(self) -> str:
        """Task of transcripts; tasks have languages without their region."""
        return f"asr_{self.source.partition('-')[0]}"

    @property
    def ast_task(self) -> str:
        """Task of translations."""
        return f"ast_{self.source.partition('-')[0]}-{self.target.partition('-')[0]}"


@dataclass(frozen=True)
class Clip:
    """One line of a translation table."""

    path: str
    sentence: str
    translation: str
    client_id: str
    origin: str


@dataclass
class DirectionData:
    """The clips of a direction by split, and what is wrong with its tables."""

    clips: dict[str, list[Clip]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    problems: dict[str, list[Problem]] = field(default_factory=lambda: {split: [] for split in SPLITS})


class RowsOfSplit:
    """Rows of a set: each translation, and the transcript of each clip once."""

    def __init__(self, commonvoice: Path):
        self.commonvoice = commonvoice
        self.rows: dict[str, Row] = {}
        self.problems: dict[str, Problem] = {}

    def add(self, direction: Direction, data: DirectionData, split: str, there: set[str], transcripts: bool) -> None:
        """Add the clips of a direction that are in ``there``."""
        self.problems |= {f"{problem.file}:{problem.uid}": problem for problem in data.problems[split]}
        for clip in data.clips[split]:
            file = self.commonvoice / direction.source / "clips" / clip.path
            if clip.path not in there:
                # Once, however many directions want it.
                problem = Problem(clip.path, str(file), "missing clip", f"named in {clip.origin}")
                self.problems.setdefault(str(file), problem)
                continue
            self._add_row(direction.ast_task, clip.translation, clip, file)
            if transcripts and _uid(clip, direction.asr_task, direction.source) not in self.rows:
                self._add_row(direction.asr_task, clip.sentence, clip, file)

    def _add_row(self, task: str, text: str, clip: Clip, file: Path) -> None:
        language = file.parent.parent.name
        uid = _uid(clip, task, language)
        if uid in self.rows:
            self.problems[f"{clip.origin}:{uid}"] = Problem(uid, clip.origin, "clip comes twice", clip.path)
            return
        speaker = _speaker(clip.client_id, language)
        self.rows[uid] = Row(uid, str(file), text, speaker, task, clip.origin, src_text=clip.sentence)


def prepare(args: argparse.Namespace) -> None:
    """Write train, dev and a test set for each direction."""
    directions = [parse_direction(text) for text in dict.fromkeys(args.directions)]
    sources = dict.fromkeys(direction.source for direction in directions)
    clips = {source: _clips(args.commonvoice / source / "clips") for source in sources}
    tables = {direction: read_direction(args, direction) for direction in directions}
    commonvoice = args.commonvoice.absolute()
    for split in ("train", "dev"):
        rows = RowsOfSplit(commonvoice)
        for direction, data in tables.items():
            rows.add(direction, data, split, clips[direction.source], transcripts=True)
        write_rows(args.output_dir / split, list(rows.rows.values()), rows.problems.values())
    transcribed: set[str] = set()
    for direction, data in tables.items():
        rows = RowsOfSplit(commonvoice)
        # Recognition of a language is tested once, with its first direction.
        transcripts = direction.source not in transcribed
        transcribed.add(direction.source)
        rows.add(direction, data, "test", clips[direction.source], transcripts)
        write_rows(args.output_dir / f"test_{direction}", list(rows.rows.values()), rows.problems.values())


def parse_direction(text: str) -> Direction:
    """``en-de``, ``zh-CN-en``: CoVoST 2 translates from English or into it."""
    if text.startswith("en-"):
        direction = Direction("en", text.removeprefix("en-"))
    else:
        direction = Direction(text.removesuffix("-en"), "en")
    if str(direction) != text or direction.source == direction.target:
        raise DataDirError(f"direction '{text}' is neither en-<language> nor <language>-en")
    # Unknown languages are an error now, not at the instruction in stage 3.
    for task in (direction.ast_task, direction.asr_task):
        default_prompt(task)
    try:
        # What scoring in stage 13 lacks is said before days of training, too.
        bleu_metric(direction.target)
    except ValueError as error:
        raise DataDirError(f"direction '{text}': {error}") from error
    return direction


def read_direction(args: argparse.Namespace, direction: Direction) -> DirectionData:
    """Read the three tables of ``get_covost_splits.py``, or what it makes them of."""
    name = f"covost_v2.{direction.source}_{direction.target}"
    data = DirectionData()
    files = {split: args.covost2 / f"{name}.{split}.tsv" for split in SPLITS}
    whole = args.covost2 / f"{name}.tsv"
    if not any(file.is_file() for file in files.values()) and whole.is_file():
        _read_whole(whole, args.commonvoice / direction.source / "validated.tsv", data)
        return data
    for split, file in files.items():
        for origin, cells in read_tsv(file, ("path", "sentence", "translation", "client_id"), data.problems[split]):
            data.clips[split].append(Clip(**cells, origin=origin))
    return data


def _read_whole(file: Path, validated: Path, data: DirectionData) -> None:
    """Translations with their split; sentences and speakers are Common Voice's."""
    unreadable: list[Problem] = []
    columns = ("path", "sentence", "client_id")
    said = {cells["path"]: cells for _, cells in read_tsv(validated, columns, unreadable)}
    for origin, cells in read_tsv(file, ("path", "translation", "split"), unreadable):
        split = SPLIT_OF.get(cells.pop("split"))
        if split is None:
            continue
        if cells["path"] in said:
            data.clips[split].append(Clip(**(said[cells["path"]] | cells), origin=origin))
        else:
            problem = Problem(cells["path"], str(validated), "clip not in validated.tsv", f"named in {origin}")
            data.problems[split].append(problem)
    # Nobody can tell which split a broken line belongs to.
    data.problems["train"] += unreadable


def read_tsv(file: Path, columns: Sequence[str], problems: list[Problem]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place and columns of each line; one without as many cells as the first is a problem."""
    if not file.is_file():
        raise DataDirError(f"{file}: no such file")
    try:
        lines = file.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise DataDirError(f"{file}: not UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        header = _cells(lines[0])
    except csv.Error as error:
        raise DataDirError(f"{file}:1: {_reason(error)}") from error
    for column in columns:
        if column not in header:
            raise DataDirError(f"{file}:1: no column '{column}' (columns: {' '.join(header)})")
    for number, line in enumerate(lines[1:], 2):
        try:
            cells = _cells(line)
        except csv.Error as error:  # such as a carriage return within a cell
            value = f"{_reason(error)}: {line[:80]}"
            problems.append(Problem(f"line {number}", str(file), "broken line", value))
            continue
        if len(cells) == len(header):
            values = dict(zip(header, cells, strict=True))
            yield f"{file}:{number}", {column: values[column] for column in columns}
        elif cells:
            value = f"{len(cells)} cells instead of {len(header)}: {line[:80]}"
            problems.append(Problem(f"line {number}", str(file), "broken line", value))


def _cells(line: str) -> list[str]:
    """Quotes are no quotes here, but characters may be escaped: CoVoST writes its tables so."""
    return next(csv.reader([line.rstrip("\r")], delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"), [])


def _reason(error: csv.Error) -> str:
    """Without Python's advice to whoever opened the file."""
    return str(error).partition(" - ")[0]


def _clips(folder: Path) -> set[str]:
    """Names in a folder of clips: asking for each of a million files takes far longer."""
    if not folder.is_dir():
        raise DataDirError(f"{folder}: no such folder; Common Voice's clips should be in it")
    return {entry.name for entry in os.scandir(folder)}


def _speaker(client_id: str, language: str) -> str:
    """Common Voice's speakers are 128 letters long."""
    return f"{language}-{hashlib.sha256(client_id.encode()).hexdigest()[:12]}"


def _uid(clip: Clip, task: str, language: str) -> str:
    """Of ``common_voice_en_17288.mp3`` only the number is new."""
    number = Path(clip.path).stem.removeprefix(f"common_voice_{language}_")
    return f"{_speaker(clip.client_id, language)}-{number}-{task}"


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commonvoice", type=Path, required=True, help="Folder that holds en/clips, de/clips, ...")
    parser.add_argument("--covost2", type=Path, required=True, help="Folder that holds covost_v2.en_de.train.tsv, ...")
    parser.add_argument("--directions", nargs="+", required=True, help="As in: en-de de-en")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the data directories")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        prepare(get_parser().parse_args(cmd))


if __name__ == "__main__":
    main()
