"""Export a plain LLM: ``python -m espnet_bestow.bin.bestow_export --exp D --output_dir D2``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.packing import Trained, write_folded


def get_parser() -> argparse.ArgumentParser:
    """Command line options."""
    parser = argparse.ArgumentParser(
        description="Fold LoRA adapters into the LLM. <output_dir>/llm is then a plain LLM for "
        "transformers; <output_dir> as a whole is a model for Speech2Text.from_pretrained.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--exp", type=Path, required=True, help="Directory of the training")
    parser.add_argument("--output_dir", type=Path, required=True, help="Directory to write")
    parser.add_argument("--model_file", help="Checkpoint in --exp; default: the best one")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        write_folded(Trained.find(args.exp, args.model_file), args.output_dir)
    print(f"LLM: {args.output_dir / 'llm'}\nmodel: {args.output_dir}", file=sys.stderr)


if __name__ == "__main__":
    main()
