"""A data directory as the lists that ``simuleval`` reads: source, target and prompt, one line per row.

``prompt`` goes to ``--tgt-lang``, SimulEval's only way to tell an agent something about one recording.
"""

import argparse
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.simul.examples import Example, evenly, read_examples


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data_dir", type=Path, required=True, help="Formatted data directory")
    parser.add_argument("--output_dir", type=Path, required=True, help="Gets source, target, prompt, key and task")
    parser.add_argument("--tasks", nargs="+", default=["asr", "ast"], help="Tasks or families of tasks")
    parser.add_argument("--max_rows", type=positive_int, help="Only so many rows of each task, evenly chosen")
    return parser


def write_lists(folder: Path, examples: list[Example]) -> None:
    """One line per example, in the same order in all files."""
    for example in examples:
        if not example.source.is_whole_file:
            where = example.source.location
            raise ValueError(f"utterance '{example.key}': simuleval reads whole files only, not {where} (run stage 3)")
    columns = {
        "source": [e.source.location for e in examples],
        "target": [e.reference for e in examples],
        "prompt": [e.prompt for e in examples],
        "key": [e.key for e in examples],
        "task": [e.task for e in examples],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in columns.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        args = get_parser().parse_args(cmd)
        examples = read_examples(args.data_dir, args.tasks)
        write_lists(args.output_dir, examples if args.max_rows is None else evenly(examples, args.max_rows))


if __name__ == "__main__":
    main()
