"""Train a tokenizer: ``python -m espnet_bestow.bin.train_tokenizer --text F --output_dir D``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int, true_or_false
from espnet_bestow.llm.text_lines import read_lines
from espnet_bestow.llm.train_tokenizer import train_tokenizer


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 5."""
    parser = argparse.ArgumentParser(
        description="Train a byte-pair tokenizer and write it as a transformers directory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--text", type=Path, action="append", required=True, help="UTF-8 text file; may be repeated")
    parser.add_argument("--kaldi", type=true_or_false, default=False, help="true: the first column is an id")
    parser.add_argument("--vocab_size", type=positive_int, default=300, help="Tokens, special ones included")
    parser.add_argument("--output_dir", type=Path, required=True, help="Directory to write")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        lines = read_lines(args.text, has_ids=args.kaldi)
        tokenizer = train_tokenizer(lines, args.vocab_size)
        tokenizer.save_pretrained(args.output_dir)
    tokens = sum(map(len, tokenizer(lines, add_special_tokens=False).input_ids))
    print(
        f"{args.output_dir}: {len(tokenizer)} tokens, {len(lines)} lines, {tokens / len(lines):.1f} tokens per line",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
