"""Streams a data directory through a model: ``python -m espnet_bestow.bin.bestow_simulate --model ... --policies ...``.

Writes ``<output_dir>/<policy>/<task>/instances.log`` (SimulEval's format, with keys of ours) and ``simulstream.jsonl``
beside it. A run that was killed goes on where it was when it is started again.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.datadir.directory import read_table
from espnet_bestow.evaluate.instances import UNITS
from espnet_bestow.simul.examples import Example, evenly, read_examples
from espnet_bestow.simul.loading import Hearing, Streamer, load_model, model_files
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.simul.runs import claim, fingerprint
from espnet_bestow.simul.simulator import OneByOne, Sending, Simulator, Together, simulate
from espnet_bestow.streaming.policies import build_policy

MODULE = "espnet_bestow.bin.bestow_simulate"
# Options that change what is said or when.
_DECISIVE = ("segment_ms", "max_tokens", "unit", "right_context", "context")


def add_options(parser: argparse._ArgumentGroup, required: bool = True) -> None:
    """Options of streaming, without where the logs go."""
    parser.add_argument(
        "--model", required=required, help="Experiment, checkpoint in one, packed zip or hub repository"
    )
    parser.add_argument("--data_dir", type=Path, required=required, help="wav.scp, text, maybe prompt and utt2task")
    parser.add_argument(
        "--policies", nargs="+", required=required, help="wait_k:k=8,step=2; of k=4/8/12 one after the other"
    )
    parser.add_argument("--tasks", nargs="+", default=["asr", "ast"], help="Tasks or families of tasks to stream")
    parser.add_argument("--default_task", default="asr_en", help="Task of all rows if there is no utt2task")
    parser.add_argument("--key_file", type=Path, help="Stream only these utterances (splitting into jobs)")
    parser.add_argument("--max_rows", type=positive_int, help="Stream only so many rows of each task, evenly chosen")
    parser.add_argument("--segment_ms", type=positive_int, default=320, help="Audio sent at a time")
    parser.add_argument("--sessions", type=positive_int, default=1, help="Streams at once; 1 times computation")
    parser.add_argument("--max_tokens", type=positive_int, default=200, help="Longest answer")
    parser.add_argument("--unit", choices=UNITS, default="word", help="What has a delay")
    parser.add_argument("--right_context", type=int, help="Frames beyond the visible ones (None: the model's)")
    parser.add_argument("--context", help="Attention context of a streaming encoder, e.g. 70,6 (None: the model's)")
    parser.add_argument("--device", default="cpu", help="torch device")


def get_parser() -> argparse.ArgumentParser:
    """Options of the simulator."""
    parser = argparse.ArgumentParser(
        description="Stream a data directory", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Gets <policy>/<task>/instances.log")
    parser.add_argument("--log_level", type=str.upper, default="INFO", help="Level of the log on stderr")
    add_options(parser.add_argument_group("Streaming"))
    return parser


def chosen(args: argparse.Namespace) -> list[Example]:
    """The rows to stream; which ones does not depend on how they are split into jobs."""
    examples = read_examples(args.data_dir, args.tasks, args.default_task)
    if args.max_rows is not None:
        examples = evenly(examples, args.max_rows)
    if args.key_file is not None:
        keys = read_table(args.key_file).keys()
        examples = [example for example in examples if example.key in keys]
    return examples


def run(args: argparse.Namespace, output_dir: Path) -> None:
    """Streams everything, policy by policy."""
    specs, examples = PolicySpec.parse_all(args.policies), chosen(args)
    for spec in specs:
        build_policy(spec.name, **dict(spec.options))  # a bad one is an error before any work
    made_with = {"checkpoint": fingerprint(model_files(args.model)[1])}
    made_with |= {name: getattr(args, name) for name in _DECISIVE} | {"timed": args.sessions == 1}
    s2t = load_model(args.model, args.device)
    hearing, sending = Hearing(args.right_context, args.context), Sending(args.segment_ms, args.unit)
    bar = tqdm(total=len(specs) * len(examples), unit="utt", file=sys.stderr, disable=None)
    for spec in specs:
        streamer = Streamer(s2t, spec, hearing, args.max_tokens)
        simulator: Simulator = OneByOne(streamer, sending)
        if args.sessions > 1:
            simulator = Together(streamer, sending, args.sessions)
        claim(output_dir / spec.folder, made_with)
        compute = audio = 0.0
        for instance in simulate(simulator, examples, output_dir / spec.folder):
            compute, audio = compute + (instance.compute or 0.0), audio + instance.source_length
            bar.update()
        speed = f"RTF {compute / audio:.3f}" if compute else f"{args.sessions} sessions together"
        logging.info(f"{spec}: {len(examples)} utterances, {audio / 1000:.1f} s of audio, {speed}")
    bar.close()


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends in one line."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s", stream=sys.stderr
    )
    with fail_with_one_line():
        run(args, args.output_dir)


if __name__ == "__main__":
    main()
