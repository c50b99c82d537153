"""An extracted LibriSpeech as data directories: a row of recognition per utterance."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.datadir import DataDirError, Problem, Row, read_table, write_rows

TASK = "asr_en"
HELD_OUT = {"dev": ["dev-clean", "dev-other"], "test_clean": ["test-clean"], "test_other": ["test-other"]}


def prepare(args: argparse.Namespace) -> None:
    """Write the training set and those for validation and tests."""
    sets = {args.train_set: args.train_parts, **HELD_OUT}
    # Nothing is written before everything is there.
    for part in {part: None for parts in sets.values() for part in parts}:
        _check_part(args.librispeech, part)
    for name, parts in sets.items():
        rows: list[Row] = []
        problems: list[Problem] = []
        for part in parts:
            read_part(args.librispeech.absolute() / part, rows, problems)
        write_rows(args.output_dir / name, rows, problems)


def read_part(folder: Path, rows: list[Row], problems: list[Problem]) -> None:
    """Append what a part such as train-clean-100 holds: <speaker>/<chapter>/<speaker>-<chapter>-<n>.flac."""
    chapters = sorted(folder.glob("*/*/*.trans.txt"))
    if not chapters:
        raise DataDirError(f"{folder}: no <speaker>/<chapter>/<speaker>-<chapter>.trans.txt in it")
    audio = set(folder.glob("*/*/*.flac"))
    transcribed = set()
    for chapter in chapters:
        speaker = chapter.parent.parent.name
        for uid, words in read_table(chapter).items():
            file = chapter.parent / f"{uid}.flac"
            if not uid.startswith(f"{speaker}-{chapter.parent.name}-"):
                problems.append(Problem(uid, str(chapter), "id of another chapter", words))
            elif file not in audio:
                problems.append(Problem(uid, str(file), "transcript without audio", f"in {chapter.name}"))
            else:
                words = words.lower()
                rows.append(Row(uid, str(file), words, speaker, TASK, str(chapter), src_text=words))
            transcribed.add(file)
    problems += [
        Problem(file.stem, str(file), "audio without transcript", "in no *.trans.txt")
        for file in sorted(audio - transcribed)
    ]


def _check_part(corpus: Path, part: str) -> None:
    if not corpus.is_dir():
        raise DataDirError(f"{corpus}: no such folder; LibriSpeech should be in it")
    if not (corpus / part).is_dir():
        there = " ".join(sorted(entry.name for entry in corpus.iterdir() if entry.is_dir()))
        raise DataDirError(f"{corpus / part}: no such folder (there are: {there or 'none'})")


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--librispeech", type=Path, required=True, help="Folder that holds train-clean-100, ...")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the data directories")
    parser.add_argument("--train_set", required=True, help="Name of the training set")
    parser.add_argument("--train_parts", nargs="+", required=True, help="Parts that it is made of")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        prepare(get_parser().parse_args(cmd))


if __name__ == "__main__":
    main()
