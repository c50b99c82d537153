"""Kaldi-style text files: `<key> <text>` per line."""

import re
from collections.abc import Collection
from pathlib import Path

_SHOWN = 3
_BLANKS = re.compile(r"[ \t]+")


def read_key_text(path: Path) -> dict[str, str]:
    """Reads a key file; a key without text maps to the empty string."""
    rows: dict[str, str] = {}
    # Lines end at \n only and keys at a space or tab only: what else Unicode calls a line or a
    # space may well be part of the text.
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                key, *text = _BLANKS.split(line.strip(" \t\r\n"), maxsplit=1)
                if not key:
                    raise ValueError(f"{path}:{number}: empty line, expected '<key> <text>'")
                if key in rows:
                    raise ValueError(f"{path}:{number}: key {key!r} appears a second time")
                rows[key] = text[0] if text else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from error
    if not rows:
        raise ValueError(f"{path}: the file holds no line")
    return rows


def _sample(keys: list[str]) -> str:
    more = ", ..." if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def check_same_keys(expected: Collection[str], expected_name: Path, got: Collection[str], got_name: Path) -> None:
    """Raises one error that shows both sides unless the two files hold the same keys."""
    problems = []
    if missing := [key for key in expected if key not in got]:
        problems.append(f"{len(missing)} missing from {got_name} ({_sample(missing)})")
    if extra := [key for key in got if key not in expected]:
        problems.append(f"{len(extra)} not in {expected_name} ({_sample(extra)})")
    if problems:
        raise ValueError(
            f"ids differ: {expected_name} has {len(expected)}, {got_name} has {len(got)}; " + "; ".join(problems)
        )
