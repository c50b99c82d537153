"""Makes the built-in corpus: speech, tasks and text, all generated."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.corpus.build import RENDERERS, Order, build_corpus
from espnet_bestow.corpus.tiers import TIERS


def get_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m espnet_bestow.bin.bestow_corpus",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="where to put it")
    parser.add_argument("--tier", choices=sorted(TIERS), default="mini", help="its size")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes")
    parser.add_argument("--nj", type=_positive, default=os.cpu_count() or 1, help="worker processes")
    parser.add_argument("--renderer", choices=sorted(RENDERERS), default="espeak", help="what speaks the text")
    parser.add_argument("--overwrite", action="store_true", help="replace another corpus in output_dir")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not a positive number")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    args = get_parser().parse_args(argv)
    order = Order(
        output_dir=args.output_dir,
        tier=TIERS[args.tier],
        seed=args.seed,
        renderer=args.renderer,
        workers=args.nj,
        overwrite=args.overwrite,
    )
    start = time.perf_counter()
    try:
        built = build_corpus(order)
    except (OSError, RuntimeError) as error:
        print(f"bestow_corpus: {error}", file=sys.stderr)
        return 1
    if built:
        seconds = time.perf_counter() - start
        print(f"built the {args.tier} corpus in {args.output_dir} in {seconds:.1f} s")
    else:
        print(f"the {args.tier} corpus in {args.output_dir} is complete; nothing to do")
    return 0


if __name__ == "__main__":
    sys.exit(main())
