"""What a recipe finds in a corpus, row by row, as one data directory."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_bestow.datadir.directory import REJECTED, DataDir, DataDirError, Problem, count_problems, write_rejected

_OPTIONAL = ("prompt", "src_text")


@dataclass(frozen=True)
class Row:
    """One (audio, instruction, answer).

    Attributes:
        uid: Id; it begins with the speaker's, because Kaldi's tools want both sorted alike.
        audio: File or pipe, as in ``wav.scp``.
        text: The answer.
        speaker: Who speaks.
        task: As in ``utt2task``.
        origin: The file that the row was read from, for messages.
        src_text: The transcript; empty in all rows of a corpus that has none.
        prompt: The instruction; empty in all rows where the task's own will do.
    """

    uid: str
    audio: str
    text: str
    speaker: str
    task: str
    origin: str
    src_text: str = ""
    prompt: str = ""


def write_rows(folder: Path, rows: Sequence[Row], problems: Iterable[Problem] = ()) -> None:
    """Write the rows with words in them, and ``rejected.tsv`` with whatever is left out.

    Args:
        folder: The data directory.
        rows: In any order.
        problems: What the corpus has but no row could be made of.

    Raises:
        DataDirError: Two rows have the same id, a name holds a blank, or no row is left.
    """
    by_uid: dict[str, Row] = {}
    for row in rows:
        _check_names(row)
        if row.uid in by_uid:
            raise DataDirError(f"{row.origin}: row '{row.uid}' comes twice, see also {by_uid[row.uid].origin}")
        by_uid[row.uid] = row
    names = ["text", *(name for name in _OPTIONAL if any(getattr(row, name) for row in rows))]
    words = {name: {uid: " ".join(getattr(row, name).split()) for uid, row in by_uid.items()} for name in names}
    empty = {uid: name for name in reversed(names) for uid, value in words[name].items() if not value}
    kept = {uid: row for uid, row in by_uid.items() if uid not in empty}
    left_out = [
        *problems,
        *(Problem(uid, by_uid[uid].origin, f"empty {name}", "no words") for uid, name in empty.items()),
    ]
    if not kept:
        raise DataDirError(f"{folder}: no row is left{_summary(left_out)}")
    tables = {
        "wav.scp": {uid: row.audio for uid, row in kept.items()},
        "utt2spk": {uid: row.speaker for uid, row in kept.items()},
        "utt2task": {uid: row.task for uid, row in kept.items()},
        **{name: {uid: words[name][uid] for uid in kept} for name in names},
    }
    DataDir(folder, tables).write(folder)
    write_rejected(folder / REJECTED, left_out)
    listed = f" (listed in {folder / REJECTED})" if left_out else ""
    speakers = len({row.speaker for row in kept.values()})
    print(f"{folder}: {len(kept)} rows, {speakers} speakers{_summary(left_out)}{listed}", file=sys.stderr)


def _check_names(row: Row) -> None:
    for name in (row.uid, row.speaker, row.task):
        if name.split() != [name]:
            raise DataDirError(f"{row.origin}: '{name}' is empty or holds a blank and cannot be a name in a table")


def _summary(problems: Sequence[Problem]) -> str:
    """How many of which kind, and the first of them, so that one can go and look."""
    if not problems:
        return ""
    return f"; left out: {count_problems(problems)}, the first is {problems[0]}"
