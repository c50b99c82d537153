"""Scores the latency of any simultaneous decoding log: `python -m espnet_bestow.bin.bestow_latency`."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet_bestow.evaluate.chunk_log import JOINS, read_chunk_log
from espnet_bestow.evaluate.emission import SpokenWord, emission_delays, read_ctm
from espnet_bestow.evaluate.instances import UNITS, Instance, merge_instances, units_of, write_instances
from espnet_bestow.evaluate.key_text import read_key_text
from espnet_bestow.evaluate.latency_scoring import LatencyReport, score_latency, write_details
from espnet_bestow.evaluate.longform import Segment, read_segments, score_longform
from espnet_bestow.evaluate.results import write_text_atomically

MODULE = "espnet_bestow.bin.bestow_latency"
UTTERANCE_KEY = "key"  # our logs name the row of the data dir


def get_parser() -> argparse.ArgumentParser:
    """Command line options."""
    parser = argparse.ArgumentParser(
        description="Score the latency of logs of SimulEval (instances.log), of simulstream (JSONL) or of ours",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--log", type=Path, nargs="+", required=True, help="Log, or the logs of several jobs")
    parser.add_argument("--format", choices=("instances", "chunks"), default="instances", help="chunks: simulstream's")
    parser.add_argument("--unit", choices=UNITS, default="word", help="What a delay belongs to")
    parser.add_argument("--join", choices=tuple(JOINS), default="word", help="What tokens of simulstream's log are")
    parser.add_argument("--data_dir", type=Path, help="Data dir: its wav.scp names recordings, its text answers them")
    parser.add_argument("--ctm", type=Path, help="Spoken words and their times, for word delays of a transcription")
    parser.add_argument("--segments", type=Path, help="IWSLT segmentation of long recordings, YAML or JSON")
    parser.add_argument("--references", type=Path, help="One reference per line of --segments")
    parser.add_argument("--output", type=Path, help="JSON file to write the scores to")
    parser.add_argument("--details", type=Path, help="TSV file to write every utterance's scores to")
    parser.add_argument("--instances", type=Path, help="instances.log to write, e.g. merged or from chunks")
    return parser


class Rows:
    """Rows of a data dir by their recordings, which logs name by a path, by its last part, or by the row itself.

    Args:
        files: of each row, as in wav.scp; of several rows about one file the first is found.
    """

    def __init__(self, files: Mapping[str, str]):
        self.files = files
        self._rows: dict[str, str] = {}  # by path
        for key, path in files.items():
            self._rows.setdefault(path, key)
        self._paths: dict[str, list[str]] = {}  # by their last part
        for path in self._rows:
            self._paths.setdefault(Path(path).stem, []).append(path)

    @classmethod
    def of(cls, data_dir: Path | None) -> "Rows":
        """Those of a data dir; none where there is none."""
        return cls({} if data_dir is None else read_key_text(data_dir / "wav.scp"))

    def find(self, recording: str) -> str | None:
        """The row of a recording; None where there is none.

        Raises:
            ValueError: Files in several folders have this name.
        """
        stem = Path(recording).stem
        for exact in (recording, stem):
            if exact in self.files:
                return exact
        paths = [recording] if recording in self._rows else self._paths.get(stem, [])
        if len(paths) > 1:
            raise ValueError(f"recording {recording!r} may be any of {', '.join(paths[:3])}: log it with its folder")
        return self._rows[paths[0]] if paths else None


def _row(instance: Instance, rows: Rows) -> str:
    """Row of the data dir that an instance comes from."""
    path = instance.source if isinstance(instance.source, str) else next(iter(instance.source), "")
    return str(instance.extra.get(UTTERANCE_KEY) or rows.find(path) or instance.recording)


def _from_chunks(args: argparse.Namespace, segments: Mapping[str, Sequence[Segment]]) -> list[Instance]:
    """Instances of simulstream's logs; references come from the segments or from the data dir."""
    if args.segments:
        texts = {name: " ".join(part.reference for part in parts) for name, parts in segments.items()}
        row_of = Rows({name: name for name in texts}).find
    elif args.data_dir:
        texts = read_key_text(args.data_dir / "text")
        row_of = Rows.of(args.data_dir).find
    else:
        raise ValueError("--format chunks needs references: give --data_dir, or --segments and --references")
    recordings = [recording for path in args.log for recording in read_chunk_log(path)]
    found = [(recording, row_of(recording.name)) for recording in recordings]
    for recording, row in found:
        if row not in texts:
            raise ValueError(f"recording {recording.name!r} has no reference; there are {sorted(texts)[:3]} ...")
    return [
        recording.instance(n, texts[str(row)], unit=args.unit, join=args.join)
        for n, (recording, row) in enumerate(found)
    ]


def _word_delays(instances: Sequence[Instance], ctm: Path, rows: Rows) -> dict[str, float | int | None]:
    """p50 and p90 from word onset to emission, on the clocks that were logged."""
    words = read_ctm(ctm)
    spoken: list[list[SpokenWord]] = []
    for instance in instances:
        key = _row(instance, rows)
        if key not in words:
            raise ValueError(f"instance {instance.index}: {ctm} has no words of {key!r}")
        spoken.append(words[key])
    found: dict[str, float | int | None] = {}
    for suffix, attribute in (("", "delays"), ("_ca", "clock")):
        if all(getattr(i, attribute) or not i.delays for i in instances) and any(i.delays for i in instances):
            delays = emission_delays(
                [
                    (units_of(i.prediction, "word"), getattr(i, attribute), w)
                    for i, w in zip(instances, spoken, strict=True)
                ]
            )
            found |= {f"word_delay_p{share}{suffix}": delays.percentile(share) for share in (50, 90)}
            found |= {"matched_words": len(delays.milliseconds), "spoken_words": delays.spoken}
    return found


def _table(report: LatencyReport, more: Mapping[str, Any]) -> str:
    """Metrics with their intervals, one per line."""
    lines = [f"{'metric':<24}{'value':>12}  95 % interval, n"]
    lines += [f"{name:<24}{s.value:>12.3f}  [{s.low:.3f}, {s.high:.3f}], {s.n}" for name, s in report.scores.items()]
    lines += [f"{k:<24}{v:>12.3f}" if isinstance(v, float) else f"{k:<24}{v!s:>12}" for k, v in more.items()]
    lines.append(f"{report.empty} of {report.utterances} answers are empty")
    if report.degenerate:
        lines.append("warning: most words come after the end of the audio, so the mean lag says little (degenerate)")
    return "\n".join(lines)


def score(args: argparse.Namespace, command: str) -> str:
    """Does the work and returns what to print."""
    if bool(args.segments) != bool(args.references):
        raise ValueError("--segments and --references go together")
    if args.ctm and args.unit != "word":
        raise ValueError(f"--ctm needs --unit word, got {args.unit}")
    segments = read_segments(args.segments, args.references) if args.segments else {}
    chunks = args.format == "chunks"
    instances = _from_chunks(args, segments) if chunks else merge_instances(args.log, args.unit)
    report = score_latency(instances, args.unit)
    more: dict[str, Any] = {}
    if args.segments:
        long = score_longform(instances, segments, args.unit)
        more |= long.values | {"segments": long.segments, "empty_segments": long.empty, "unplaced": long.unplaced}
    if args.ctm:
        more |= _word_delays(instances, args.ctm, Rows.of(args.data_dir))
    if args.instances:
        write_instances(args.instances, instances)
    if args.details:
        write_details(args.details, instances, args.unit)
    if args.output:
        entry = {**asdict(report), "degenerate": report.degenerate, "more": more, "unit": args.unit, "command": command}
        write_text_atomically(args.output, json.dumps(entry, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return _table(report, more)


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends in one line."""
    cmd = sys.argv[1:] if cmd is None else cmd
    args = get_parser().parse_args(cmd)
    try:
        print(score(args, shlex.join(["python", "-m", MODULE, *cmd])))
    except (ValueError, OSError) as error:
        sys.exit(f"bestow_latency: {error}")


if __name__ == "__main__":
    main()
