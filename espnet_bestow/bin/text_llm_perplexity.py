"""Measure a text LLM: ``python -m espnet_bestow.bin.text_llm_perplexity --llm D --text F``."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.llm.causal_lm import load_causal_lm
from espnet_bestow.llm.perplexity import perplexity
from espnet_bestow.llm.text_lines import read_lines
from espnet_bestow.llm.tokenizer import load_tokenizer


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 8."""
    parser = argparse.ArgumentParser(
        description="Perplexity of a text LLM per token and per word (the end of a line is one).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--llm", required=True, help="Directory or hub id")
    parser.add_argument("--text", type=Path, required=True, help="UTF-8, one example per line")
    parser.add_argument("--batch_size", type=positive_int, default=64, help="Lines at once")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write as well")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        lines = read_lines([args.text])
        model = load_causal_lm(args.llm).to(args.device)
        found = perplexity(model, load_tokenizer(args.llm), lines, args.batch_size)
        text = json.dumps({"llm": args.llm, "text": str(args.text), **dataclasses.asdict(found)})
        if args.output is not None:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
