"""Plots how one row of a data dir is read and written: `python -m espnet_bestow.bin.bestow_read_write`."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.datadir.source import read_source
from espnet_bestow.evaluate.emission import read_ctm
from espnet_bestow.evaluate.read_write_plot import plot_read_write
from espnet_bestow.simul.examples import Example, read_examples
from espnet_bestow.simul.loading import load_model
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.policies import build_policy
from espnet_bestow.streaming.watched import Watched


def get_parser() -> argparse.ArgumentParser:
    """Command line options."""
    parser = argparse.ArgumentParser(
        description="Plot what each token of an answer saw, looked at, and when it was written",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="Experiment, checkpoint in one, packed zip or hub repository")
    parser.add_argument("--data_dir", type=Path, required=True, help="wav.scp, text, and maybe prompt, utt2task, ctm")
    parser.add_argument("--key", required=True, help="Row of the data dir")
    parser.add_argument("--policy", default="wait_k:k=6,step=4", help="One that decides token by token")
    parser.add_argument("--segment_ms", type=positive_int, default=320, help="Audio sent at a time")
    parser.add_argument("--default_task", default="asr_en", help="Task of all rows if there is no utt2task")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write")
    return parser


def _example(args: argparse.Namespace) -> Example:
    tasks = ["asr", "ast", "sqa", "command", args.default_task]
    for example in read_examples(args.data_dir, tasks, args.default_task):
        if example.key == args.key:
            return example
    raise ValueError(f"{args.data_dir} has no row {args.key!r}")


def run(args: argparse.Namespace) -> Path:
    """Streams the row and draws it."""
    example, spec = _example(args), PolicySpec.parse(args.policy)
    watched = Watched(build_policy(spec.name, **dict(spec.options)))
    s2t = load_model(args.model, args.device)
    listener = s2t.listener()
    samples = read_source(example.source, s2t.sample_rate, uid=example.key)
    size = math.ceil(args.segment_ms / 1000 * s2t.sample_rate)
    with s2t.stream(example.prompt, watched, listener=listener) as session:
        words = [w for start in range(0, len(samples), size) for w in session.push(samples[start : start + size])]
        words += session.finish()
    if not words:
        raise ValueError(f"{example.key}: the answer under {spec} is empty, there is nothing to draw")
    pieces = list(s2t.template.tokenizer.convert_ids_to_tokens([token for word in words for token in word.tokens]))
    ctm = args.data_dir / "ctm"
    spoken = read_ctm(ctm).get(example.key, []) if ctm.exists() else []
    seconds, hop = len(samples) / s2t.sample_rate, listener.hop / s2t.sample_rate
    title = f"{example.key} · {spec}"
    return plot_read_write(watched.trace(words, pieces, seconds, hop, spoken), args.output, title)


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends in one line."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        print(f"wrote {run(args)}")


if __name__ == "__main__":
    main()
