"""Put one YAML configuration over another: the second wins, mappings are merged."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from espnet_bestow.bin.arguments import fail_with_one_line


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``.

    The options of another choice are not merged: with ``encoder: rnn`` in ``over``,
    ``encoder_conf`` starts empty rather than with the keys of the encoder in ``base``.
    """
    merged = dict(base)
    for key, value in over.items():
        if merged.get(key) != value and f"{key}_conf" in merged:
            del merged[f"{key}_conf"]
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value)
        else:
            merged[key] = value
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: not a mapping of options")
    return config


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="Complete configuration")
    parser.add_argument("over", type=Path, help="What differs")
    parser.add_argument("--output", type=Path, required=True, help="File to write")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        args = get_parser().parse_args(cmd)
        merged = merge(read_yaml(args.base), read_yaml(args.over))
        args.output.write_text(yaml.safe_dump(merged, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
