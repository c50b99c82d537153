"""What the data tools share in reading options and reporting errors."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from espnet_bestow.datadir import DataDir
from espnet_bestow.long_audio import SHORTEST


def rate_in_hz(text: str) -> int:
    """``16k`` or ``16000``, as in ESPnet's ``--fs``."""
    scale, digits = (1000, text[:-1]) if text.lower().endswith("k") else (1, text)
    try:
        rate = round(float(digits) * scale)
    except ValueError:
        rate = 0
    if rate <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a sampling rate such as 16k or 16000")
    return rate


def positive_int(text: str) -> int:
    """An integer of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer of at least 1")
    return int(text)


def positive_number(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0")
    return number


def longest_seconds(text: str) -> float:
    """Seconds of audio that are answered at once."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds >= SHORTEST:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds from {SHORTEST:g} on")
    return seconds


def true_or_false(text: str) -> bool:
    """``true`` or ``false``, as ESPnet's options take them."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() == "true"


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Options for directories whose texts have other names, e.g. ESPnet's ``text.tc.de``."""
    parser.add_argument("--text_file", default="text", help="File that holds the answers")
    parser.add_argument("--src_text_file", default="src_text", help="File of transcripts")


def read_data_dir(args: argparse.Namespace) -> DataDir:
    """Read ``args.data_dir`` with the texts named by ``add_text_options``."""
    names = {"text": args.text_file, "src_text": args.src_text_file}
    return DataDir.read(args.data_dir, {name: file for name, file in names.items() if name != file})


@contextmanager
def fail_with_one_line() -> Iterator[None]:
    """Turn errors in the user's data into one line on stderr and exit status 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
