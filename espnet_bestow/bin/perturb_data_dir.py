"""Speed perturbation: a data directory that also holds faster and slower copies of its rows."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import soundfile

from espnet_bestow.audio import WHOLE, AudioError, resample
from espnet_bestow.bin.arguments import (
    add_text_options,
    fail_with_one_line,
    positive_int,
    rate_in_hz,
    read_data_dir,
)
from espnet_bestow.datadir import (
    AudioSource,
    DataDir,
    Problem,
    SourceReader,
    count_problems,
    map_sources,
)


@dataclass(frozen=True)
class SpeedJob:
    """One audio source to be played ``factor`` times as fast."""

    source: AudioSource
    uids: tuple[str, ...]
    factor: str
    rate: int
    max_seconds: float
    audio_dir: Path

    @property
    def prefix(self) -> str:
        """What tells the copies' ids from those of the rows."""
        return "" if float(self.factor) == 1.0 else f"sp{self.factor}-"


@dataclass(frozen=True)
class SpeedResult:
    """Where the copy is, or why there is none (no location then for part of a recording)."""

    job: SpeedJob
    location: str
    error: AudioError | None = None


def perturb_source(job: SpeedJob, reader: SourceReader) -> SpeedResult:
    """Write the copy; audio that cannot be read keeps its source, so that stage 4 lists it."""
    uid = job.prefix + job.uids[0]
    try:
        samples = reader.read(job.source, job.rate, uid=uid, max_seconds=job.max_seconds)
    except AudioError as error:
        return SpeedResult(job, job.source.location if job.source.span == WHOLE else "", error)
    # Taking the samples for a recording at factor x rate makes them that much faster.
    samples = resample(samples, job.rate * float(job.factor), job.rate)
    target = job.audio_dir / f"{quote(uid, safe='')}.flac"
    soundfile.write(target, samples, job.rate, format="FLAC", subtype="PCM_16")
    return SpeedResult(job, str(target))


def perturb_data_dir(args: argparse.Namespace) -> None:
    """Write the combined directory."""
    data = read_data_dir(args)
    audio_dir = args.output_dir / "audio"
    audio_dir.mkdir(parents=True, exist_ok=True)
    rows: dict[AudioSource, list[str]] = {}
    for uid, source in sorted(data.sources().items()):
        rows.setdefault(source, []).append(uid)
    jobs = [
        SpeedJob(source, tuple(uids), factor, args.fs, args.max_seconds, audio_dir)
        for factor in args.speeds
        # Rows at their own speed stay where they are, unless they are cut from recordings.
        if float(factor) != 1.0 or data.segments
        for source, uids in rows.items()
    ]
    title = f"perturb {data.path}"
    results = map_sources(perturb_source, jobs, args.nj, title)
    tables = combine(data, results, args.speeds)
    DataDir(args.output_dir, tables).write(args.output_dir)
    problems = [
        Problem(r.job.uids[0], r.error.file, r.error.problem, r.error.value) for r in results if r.error is not None
    ]
    summary = f"{args.output_dir}: {len(data.uids())} rows -> {len(tables['text'])} rows"
    if problems:
        summary += f"; unreadable audio left to stage 4: {count_problems(problems)}"
    print(summary, file=sys.stderr)


def combine(data: DataDir, results: list[SpeedResult], speeds: list[str]) -> dict[str, dict[str, str]]:
    """Tables of all copies; speed 1.0 stands for the rows as they were."""
    tables: dict[str, dict[str, str]] = {name: {} for name in data.tables if name != "utt2num_samples"}
    for speed in speeds:
        prefix = "" if float(speed) == 1.0 else f"sp{speed}-"
        for name in tables.keys() - {"wav.scp"}:
            for uid, value in data.tables[name].items():
                tables[name][prefix + uid] = prefix + value if name == "utt2spk" else value
        if not prefix and not data.segments:
            tables["wav.scp"] |= data.tables["wav.scp"]
    for result in results:
        for uid in result.job.uids if result.location else ():
            tables["wav.scp"][result.job.prefix + uid] = result.location
    return tables


def speed(text: str) -> str:
    """A speed factor, kept as written because it becomes part of the row ids."""
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0.5 <= factor <= 2.0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a speed between 0.5 and 2.0")
    return text


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 2."""
    parser = argparse.ArgumentParser(
        description="Add copies of all rows at other speeds (tempo and pitch change together).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Directory to read")
    parser.add_argument("--output_dir", type=Path, required=True, help="Combined directory")
    parser.add_argument(
        "--speeds",
        type=speed,
        nargs="+",
        default=["0.9", "1.0", "1.1"],
        help="Speed factors as in ESPnet; 1.0 stands for the rows as they are",
    )
    parser.add_argument("--fs", type=rate_in_hz, default=16000, help="Sampling rate, e.g. 16k")
    parser.add_argument("--nj", type=positive_int, default=1, help="Number of processes")
    parser.add_argument("--max_seconds", type=float, default=600.0, help="Longer audio is not even decoded")
    add_text_options(parser)
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        perturb_data_dir(get_parser().parse_args(cmd))


if __name__ == "__main__":
    main()
