"""Tasks of Dynamic-SUPERB, as ESPnet's recipes write them, as data directories: some to train with, some never seen."""

import argparse
import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import soundfile

from espnet_bestow.audio import AudioError, read_audio
from espnet_bestow.bin.arguments import fail_with_one_line, positive_int, rate_in_hz
from espnet_bestow.datadir import (
    DataDir,
    DataDirError,
    Problem,
    Row,
    map_in_processes,
    read_table,
    table_lines,
    table_of,
    write_rows,
)

FILES = {"text": "text.output", "prompt": "text.input"}
SILENCE = 0.5  # seconds between recordings, as where ESPnet joins them
HELD_OUT = 20  # of so many rows of a task one is for validation and one for the test of seen tasks


@dataclass(frozen=True)
class JoinJob:
    """Recordings that a row compares, to become one file."""

    uid: str
    files: tuple[str, ...]
    rate: int
    target: Path

    def digest(self) -> str:
        """Another one where other recordings are joined, or the same otherwise."""
        parts = [(file, status.st_size, status.st_mtime_ns) for file in self.files for status in [Path(file).stat()]]
        return hashlib.sha256(repr((parts, self.rate, SILENCE)).encode()).hexdigest()

    def is_done(self) -> bool:
        """Whether the file is there and says that it was made of these recordings as they are now."""
        try:
            with soundfile.SoundFile(self.target) as joined:
                return joined.comment == self.digest()
        except (OSError, soundfile.LibsndfileError):  # what is missing is for `join` to say
            return False


def prepare(args: argparse.Namespace) -> None:
    """Write train, valid and test_seen, with rows of every seen task, and test_unseen."""
    tasks = _task_folders(args)
    names = _names(args, tasks)
    rows: dict[str, list[Row]] = {"train": [], "valid": [], "test_seen": [], "test_unseen": []}
    problems: dict[str, list[Problem]] = {name: [] for name in rows}
    for task, folder in tasks.items():
        unseen = task in args.unseen_tasks
        left_out = problems["test_unseen" if unseen else "train"]
        found = read_task(folder, names.get(task, f"label_{task}"), left_out)
        for number, row in enumerate(join_recordings(found, args, left_out)):
            seen = {0: "valid", HELD_OUT // 2: "test_seen"}.get(number % HELD_OUT, "train")
            rows["test_unseen" if unseen else seen].append(row)
    for name in rows:
        write_rows(args.output_dir / name, rows[name], problems[name])


def read_task(folder: Path, name: str, problems: list[Problem]) -> list[Row]:
    """Rows of a task in the order of their ids; those that a file lacks are problems."""
    data = DataDir(folder, read_tables(folder))
    incomplete = data.id_problems()
    for problem in incomplete:
        # Called by the names that the files have here.
        table = Path(problem.file).name
        file = FILES.get(table, table)
        uid = f"{folder.name}-{problem.uid}"
        problems.append(Problem(uid, str(folder / file), f"id not in {file}", f"in other files of {folder.name}"))
    tables = data.tables
    rows = []
    for key in sorted(set(data.uids()) - {problem.uid for problem in incomplete}):
        # Where speakers are unknown, rows are their own.
        speaker = tables.get("utt2spk", {}).get(key, key)
        row = Row(
            uid="-".join([folder.name, key] if key.startswith(speaker) else [folder.name, speaker, key]),
            audio=tables["wav.scp"][key],
            text=tables["text"][key],
            speaker=f"{folder.name}-{speaker}",
            task=name,
            origin=str(folder / FILES["text"]),
            prompt=tables["prompt"][key],
        )
        if row.prompt:
            rows.append(row)
        else:
            problems.append(Problem(row.uid, str(folder / FILES["prompt"]), "empty prompt", "no words"))
    return rows


def read_tables(folder: Path) -> dict[str, dict[str, str]]:
    """The files of a task as tables of a data directory."""
    if (folder / "segments").is_file():
        raise DataDirError(f"{folder / 'segments'}: rows of Dynamic-SUPERB are whole recordings")
    for file in FILES.values():
        if not (folder / file).is_file():
            raise DataDirError(f"{folder / file}: missing file")
    tables = {name: read_table(folder / name) for name in ("wav.scp", "utt2spk") if (folder / name).is_file()}
    texts = {name: list(table_lines(folder / file)) for name, file in FILES.items()}
    in_all_texts = set.intersection(*({line.split()[0] for _, line in lines} for lines in texts.values()))
    ids = in_all_texts.union(*tables.values())
    for name, lines in texts.items():
        file = folder / FILES[name]
        tables[name] = table_of(whole_lines(lines, ids), file)
        if broken := len(lines) - len(tables[name]):
            print(f"{file}: {broken} lines without an id continue the one before them", file=sys.stderr)
    return tables


def whole_lines(lines: Iterable[tuple[int, str]], ids: set[str]) -> Iterator[tuple[int, str]]:
    """Lines that begin with an id; ESPnet's recipes write line breaks within an instruction as they are."""
    begun: tuple[int, str] | None = None
    for number, line in lines:
        if begun is not None and line.split()[0] not in ids:
            begun = (begun[0], f"{begun[1]} {line}")
            continue
        if begun is not None:
            yield begun
        begun = (number, line)
    if begun is not None:
        yield begun


def join_recordings(rows: list[Row], args: argparse.Namespace, problems: list[Problem]) -> list[Row]:
    """Rows with one recording each: several in a line of wav.scp are joined, with silence between them."""
    jobs: list[JoinJob] = []
    kept: dict[str, Row] = {}
    for row in rows:
        folder = Path(row.origin).parent
        files = _files(row.audio)
        missing = [file for file in files if not _is_pipe(file) and not Path(file).is_file()]
        if missing:
            problems.append(Problem(row.uid, str(folder / "wav.scp"), "missing file", missing[0]))
            continue
        if len(files) > 1:
            target = args.output_dir / "audio" / folder.name / f"{quote(row.uid, safe='')}.flac"
            target.parent.mkdir(parents=True, exist_ok=True)
            job = JoinJob(row.uid, files, args.fs, target)
            if not job.is_done():
                jobs.append(job)
            row = replace(row, audio=str(target))
        kept[row.uid] = row
    if not jobs:
        return list(kept.values())
    title = f"join {jobs[0].target.parent.name}"
    for job, error in zip(jobs, map_in_processes(join, jobs, args.nj, title), strict=True):
        if error is not None:
            del kept[job.uid]
            problems.append(Problem(job.uid, error.file, error.problem, error.value))
    return list(kept.values())


def join(job: JoinJob) -> AudioError | None:
    """Write the joined recording, or say which of its parts cannot be read."""
    silence = np.zeros(round(SILENCE * job.rate), np.float32)
    parts: list[np.ndarray] = []
    for file in job.files:
        try:
            parts += [silence, read_audio(file, job.rate, uid=job.uid)]
        except AudioError as error:
            return error
    partial = job.target.with_suffix(".partial")
    with soundfile.SoundFile(partial, "w", job.rate, 1, "PCM_16", format="FLAC") as joined:
        joined.comment = job.digest()
        joined.write(np.concatenate(parts[1:]))
    partial.replace(job.target)
    return None


def _is_pipe(location: str) -> bool:
    return location.rstrip().endswith("|")


def _files(location: str) -> tuple[str, ...]:
    """One file, whose name may hold blanks, or several."""
    if _is_pipe(location) or Path(location).is_file():
        return (location,)
    return tuple(location.split())


def _task_folders(args: argparse.Namespace) -> dict[str, Path]:
    """The folders of tasks by their names; some of them must be seen and some unseen."""
    root = args.dynamic_superb.absolute()
    if not root.is_dir():
        raise DataDirError(f"{root}: no such folder; a folder for each task should be in it")
    tasks = {folder.name: folder for folder in sorted(root.iterdir()) if (folder / "wav.scp").is_file()}
    there = f"(there are: {' '.join(tasks) or 'none'})"
    unknown = [task for task in args.unseen_tasks if task not in tasks]
    if unknown:
        raise DataDirError(f"{root}: no {unknown[0]}/wav.scp {there}")
    if not args.unseen_tasks:
        raise DataDirError(f"{root}: --unseen_tasks must name tasks that training does not see {there}")
    if len(tasks) == len(set(args.unseen_tasks)):
        raise DataDirError(f"{root}: all tasks are unseen: nothing is left for training {there}")
    return tasks


def _names(args: argparse.Namespace, tasks: dict[str, Path]) -> dict[str, str]:
    """What tasks are called in utt2task, where a file says so."""
    if args.task_names is None:
        return {}
    names = read_table(args.task_names)
    for task, name in names.items():
        if task not in tasks or not name:
            raise DataDirError(f"{args.task_names}: '{task} {name}' is not '<folder of a task> <name>'")
    return names


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dynamic_superb", type=Path, required=True, help="Folder that holds a folder for each task")
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder of the data directories")
    parser.add_argument("--unseen_tasks", nargs="*", default=[], help="Tasks that only test_unseen has")
    parser.add_argument("--task_names", type=Path, help="File of lines '<folder of a task> <name in utt2task>'")
    parser.add_argument("--fs", type=rate_in_hz, default=16000, help="Sampling rate of what is joined")
    parser.add_argument("--nj", type=positive_int, default=1, help="Processes that join recordings")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        prepare(get_parser().parse_args(cmd))


if __name__ == "__main__":
    main()
