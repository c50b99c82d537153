"""Bring a data directory to the form that training reads: mono audio at one rate, all files."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import soundfile

from espnet_bestow.audio import AudioError, audio_info
from espnet_bestow.bin.arguments import (
    add_text_options,
    fail_with_one_line,
    positive_int,
    rate_in_hz,
    read_data_dir,
)
from espnet_bestow.datadir import (
    REJECTED,
    AudioSource,
    DataDir,
    Problem,
    SourceReader,
    count_problems,
    default_prompt,
    map_sources,
    write_rejected,
)

_AS_IT_IS = {("WAV", "PCM_16"), ("WAVEX", "PCM_16"), ("FLAC", "PCM_16")}


@dataclass(frozen=True)
class FormatJob:
    """One audio source, shared by the rows ``uids``."""

    source: AudioSource
    uids: tuple[str, ...]
    rate: int
    max_seconds: float
    audio_dir: Path


@dataclass(frozen=True)
class FormatResult:
    """Where the audio is now and its length, or why it cannot be used."""

    job: FormatJob
    location: str = ""
    samples: int = 0
    error: AudioError | None = None


def format_source(job: FormatJob, reader: SourceReader) -> FormatResult:
    """Decode a source; write it only where the file itself will not do."""
    uid, location = job.uids[0], job.source.location
    try:
        samples = reader.read(job.source, job.rate, uid=uid, max_seconds=job.max_seconds)
        if job.source.is_whole_file:
            info = audio_info(location, uid)
            kind = (info.format, info.subtype)
            if kind in _AS_IT_IS and (info.rate, info.channels) == (job.rate, 1):
                return FormatResult(job, location, len(samples))
    except AudioError as error:
        return FormatResult(job, error=error)
    target = job.audio_dir / f"{quote(uid, safe='')}.flac"
    soundfile.write(target, samples, job.rate, format="FLAC", subtype="PCM_16")
    return FormatResult(job, str(target), len(samples))


def format_audio(
    data: DataDir, output_dir: Path, args: argparse.Namespace
) -> tuple[dict[str, str], dict[str, str], list[Problem]]:
    """Format every distinct source once; returns wav.scp, utt2num_samples and the problems."""
    rows: dict[AudioSource, list[str]] = {}
    for uid, source in sorted(data.sources().items()):
        rows.setdefault(source, []).append(uid)
    audio_dir = output_dir / "audio"
    audio_dir.mkdir(parents=True, exist_ok=True)
    jobs = [FormatJob(source, tuple(uids), args.fs, args.max_seconds, audio_dir) for source, uids in rows.items()]
    wav_scp, lengths, problems = {}, {}, []
    title = f"format {data.path}"
    for result in map_sources(format_source, jobs, args.nj, title):
        for uid in result.job.uids:
            if result.error is not None:
                error = result.error
                problems.append(Problem(uid, error.file, error.problem, error.value))
            else:
                wav_scp[uid], lengths[uid] = result.location, str(result.samples)
    return wav_scp, lengths, problems


def complete_tables(data: DataDir, args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """Fill the files that directories of other recipes lack: speakers, tasks, prompts."""
    tables = dict(data.tables)
    uids = data.uids()
    tables.setdefault("utt2spk", {uid: uid for uid in uids})
    if "utt2task" not in tables:
        if not args.task:
            raise ValueError(f"{data.path}: no utt2task file, so --task must name the task")
        tables["utt2task"] = dict.fromkeys(uids, args.task)
    if "prompt" not in tables:
        tasks = tables["utt2task"]
        prompts = {task: default_prompt(task) for task in sorted(set(tasks.values()))}
        tables["prompt"] = {uid: prompts[task] for uid, task in tasks.items()}
    if "src_text" not in tables and all(t.startswith("asr") for t in tables["utt2task"].values()):
        tables["src_text"] = dict(tables["text"])
    return tables


def format_data_dir(args: argparse.Namespace) -> None:
    """Write the formatted directory and its table of unusable audio."""
    data = read_data_dir(args)
    tables = complete_tables(data, args)
    wav_scp, lengths, problems = format_audio(data, args.output_dir, args)
    tables |= {"wav.scp": wav_scp, "utt2num_samples": lengths}
    DataDir(args.output_dir, tables).write(args.output_dir)
    write_rejected(args.output_dir / REJECTED, problems)
    seconds = sum(map(int, lengths.values())) / args.fs
    summary = f"{args.output_dir}: {len(wav_scp)} rows, {seconds / 3600:.2f} h"
    if problems:
        summary += f"; unusable audio: {count_problems(problems)} (listed in {REJECTED})"
    print(summary, file=sys.stderr)


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 3."""
    parser = argparse.ArgumentParser(
        description="Convert the audio of a data directory to mono FLAC at one rate "
        "(files that are so already are referenced) and complete its files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Directory to read")
    parser.add_argument("--output_dir", type=Path, required=True, help="Directory to write")
    parser.add_argument("--fs", type=rate_in_hz, default=16000, help="Sampling rate, e.g. 16k")
    parser.add_argument("--nj", type=positive_int, default=1, help="Number of processes")
    parser.add_argument("--max_seconds", type=float, default=600.0, help="Longer audio is not even decoded")
    parser.add_argument("--task", default="", help="Task of all rows where utt2task is missing")
    add_text_options(parser)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        format_data_dir(get_parser().parse_args(cmd))


if __name__ == "__main__":
    main()
