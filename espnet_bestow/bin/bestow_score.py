"""Scores decoded text against a data dir: `python -m espnet_bestow.bin.bestow_score`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.evaluate.results import Origin, add_results
from espnet_bestow.evaluate.scoring import read_examples, score_examples, write_details
from espnet_bestow.evaluate.tables import terminal_tables

MODULE = "espnet_bestow.bin.bestow_score"


def get_parser() -> argparse.ArgumentParser:
    """Command line options."""
    parser = argparse.ArgumentParser(
        description="Score hypotheses per task and merge the scores into a results file",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="Data dir with text and maybe utt2task")
    parser.add_argument("--hyp", type=Path, required=True, help="Decoded text, '<id> <text>'")
    parser.add_argument("--test_set", required=True, help="Name of the test set in the results")
    parser.add_argument("--system", required=True, help="Name of the system in the results")
    parser.add_argument("--results", type=Path, required=True, help="results.json to merge the scores into")
    parser.add_argument("--command", default=None, help="Command noted with the scores (None: this very one)")
    parser.add_argument("--default_task", default="asr_en", help="Task of all rows if there is no utt2task")
    return parser


def score(args: argparse.Namespace, command: str) -> str:
    """Does the work and returns what to print."""
    if not args.test_set or "/" in args.test_set:
        raise ValueError(f"--test_set must be a plain name, got {args.test_set!r}")
    examples = read_examples(args.data_dir, args.hyp, args.default_task)
    results = score_examples(examples)
    origin = Origin(args.system, args.test_set, command)
    rows = [origin.row(result.task, s) for result in results for s in result.scores]
    details = args.hyp.with_name(f"scores.{args.test_set}.tsv")
    write_details(details, results)
    add_results(args.results, rows)
    empty = sum(not example.hyp for example in examples)
    note = f"\n{empty} of {len(examples)} hypotheses are empty" if empty else ""
    return f"{terminal_tables(rows)}{note}\ndetails: {details}\nmerged into: {args.results}"


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends in one line."""
    cmd = sys.argv[1:] if cmd is None else cmd
    args = get_parser().parse_args(cmd)
    command = args.command
    if command is None:
        command = shlex.join(["python", "-m", MODULE, *cmd])
    try:
        print(score(args, command))
    except (ValueError, OSError) as error:
        sys.exit(f"bestow_score: {error}")


if __name__ == "__main__":
    main()
