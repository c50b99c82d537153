"""Print values of a YAML configuration, a line for each: what a recipe's scripts decide by."""

import argparse
import json
from pathlib import Path
from typing import Any

from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.bin.merge_configs import read_yaml


def one_line(config: dict[str, Any], place: str) -> str:
    """What stands at ``model_conf.ctc_weight``: text as it is, all else as JSON; empty where nothing stands."""
    value: Any = config
    for key in place.split("."):
        if not isinstance(value, dict) or key not in value:
            return ""
        value = value[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("place", nargs="*", help="Key, or keys of mappings within mappings with dots between them")
    parser.add_argument("--but", nargs="+", help="All keys but these, with their values")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        args = get_parser().parse_args(cmd)
        config = read_yaml(args.config)
        for place in args.place:
            print(one_line(config, place))
        for key in sorted(set(config) - set(args.but)) if args.but else ():
            print(f"{key}: {one_line(config, key)}")


if __name__ == "__main__":
    main()
