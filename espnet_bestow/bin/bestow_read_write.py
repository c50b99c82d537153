"""Plots how rows of a data dir are read and written: `python -m espnet_bestow.bin.bestow_read_write`."""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.datadir.source import read_source
from espnet_bestow.evaluate.emission import SpokenWord, read_ctm
from espnet_bestow.evaluate.read_write_plot import plot_read_write
from espnet_bestow.inference import Speech2Text
from espnet_bestow.simul.examples import Example, read_examples
from espnet_bestow.simul.loading import load_model
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.policies import build_policy
from espnet_bestow.streaming.watched import Watched, tokens_of


def get_parser() -> argparse.ArgumentParser:
    """Command line options."""
    parser = argparse.ArgumentParser(
        description="Plot what each token of an answer saw, looked at, and when it was written",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="Experiment, checkpoint in one, packed zip or hub repository")
    parser.add_argument("--data_dir", type=Path, required=True, help="wav.scp, text, and maybe prompt, utt2task, ctm")
    parser.add_argument("--ctm", type=Path, help="When words were said, to be shown above; by default the data dir's")
    parser.add_argument("--key", required=True, nargs="+", help="Rows of the data dir")
    parser.add_argument("--policy", default="wait_k:k=6,step=4", help="One that decides token by token")
    parser.add_argument("--segment_ms", type=positive_int, default=320, help="Audio sent at a time")
    parser.add_argument("--default_task", default="asr_en", help="Task of all rows if there is no utt2task")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write, or a folder for one per row")
    return parser


def _examples(args: argparse.Namespace) -> list[Example]:
    tasks = ["asr", "ast", "sqa", "command", args.default_task]
    found = {example.key: example for example in read_examples(args.data_dir, tasks, args.default_task)}
    missing = [key for key in args.key if key not in found]
    if missing:
        raise ValueError(f"{args.data_dir} has no row {missing[0]!r}")
    return [found[key] for key in args.key]


def run(args: argparse.Namespace) -> Iterator[Path]:
    """Streams the rows and draws them."""
    examples = _examples(args)
    if len(examples) > 1 and args.output.suffix == ".png":
        raise ValueError(f"{args.output} is one file, but {len(examples)} rows are to be drawn: give a folder")
    s2t = load_model(args.model, args.device)
    for example in examples:
        path = args.output if args.output.suffix == ".png" else args.output / f"read_write_{example.key}.png"
        try:
            yield draw(example, s2t, args, path)
        except EmptyAnswerError as error:
            if path == args.output:
                raise
            print(f"not drawn: {error}", file=sys.stderr)  # of several rows; the others have something to show


class EmptyAnswerError(ValueError):
    """There is nothing to draw."""


def draw(example: Example, s2t: Speech2Text, args: argparse.Namespace, path: Path) -> Path:
    """Streams one row and draws it."""
    spec = PolicySpec.parse(args.policy)
    watched = Watched(build_policy(spec.name, **dict(spec.options)))
    listener = s2t.listener()
    samples = read_source(example.source, s2t.sample_rate, uid=example.key)
    size = math.ceil(args.segment_ms / 1000 * s2t.sample_rate)
    with s2t.stream(example.prompt, watched, listener=listener) as session:
        words = [w for start in range(0, len(samples), size) for w in session.push(samples[start : start + size])]
        words += session.finish()
    if not words:
        raise EmptyAnswerError(f"{example.key}: the answer under {spec} is empty, there is nothing to draw")
    pieces = list(s2t.template.tokenizer.convert_ids_to_tokens(tokens_of(words)))
    seconds, hop = len(samples) / s2t.sample_rate, listener.hop / s2t.sample_rate
    trace = watched.trace(words, pieces, seconds, hop, spoken(example.key, args))
    return plot_read_write(trace, path, f"{example.key} · {spec}")


def spoken(key: str, args: argparse.Namespace) -> list[SpokenWord]:
    """The words of a row and their times; none where nobody knows them."""
    ctm: Path = args.ctm or args.data_dir / "ctm"
    return read_ctm(ctm).get(key, []) if args.ctm or ctm.exists() else []


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends in one line."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        for path in run(args):
            print(f"wrote {path}")


if __name__ == "__main__":
    main()
