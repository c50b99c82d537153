"""Train a text LLM: ``python -m espnet_bestow.bin.text_llm_train --config train_llm.yaml ...``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, true_or_false
from espnet_bestow.llm.text_config import read_config
from espnet_bestow.llm.text_lines import read_lines
from espnet_bestow.llm.text_training import TextData, TextTraining
from espnet_bestow.llm.tokenizer import load_tokenizer


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 7."""
    parser = argparse.ArgumentParser(
        description="Train a small causal LM on lines of text; writes a transformers directory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML with model and training options")
    parser.add_argument("--tokenizer", required=True, help="Directory or hub id")
    parser.add_argument("--train_text", type=Path, required=True, help="UTF-8, one example per line")
    parser.add_argument("--valid_text", type=Path, required=True, help="UTF-8, one example per line")
    parser.add_argument("--output_dir", type=Path, required=True, help="Directory to write")
    parser.add_argument(
        "--resume",
        type=true_or_false,
        default=False,
        help="Continue from <output_dir>/checkpoint.pth",
    )
    parser.add_argument("--seed", type=int, default=0, help="Of weights and order")
    parser.add_argument("--device", default="cpu", help="torch device")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        data = TextData(read_lines([args.train_text]), read_lines([args.valid_text]))
        config, tokenizer = read_config(args.config), load_tokenizer(args.tokenizer)
        training = TextTraining(config, tokenizer, data, args.output_dir, args.seed, args.device)
        training.run(args.resume)


if __name__ == "__main__":
    main()
