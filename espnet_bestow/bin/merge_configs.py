"""Put configurations over each other, files and options in the order given: the last wins, mappings are merged."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

import yaml

from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.evaluate.results import write_text_atomically


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over``; an empty mapping empties.

    The options of another choice are not merged: with ``encoder: rnn`` in ``over``,
    ``encoder_conf`` starts empty rather than with the keys of the encoder in ``base``.
    """
    merged = dict(base)
    for key, value in over.items():
        if merged.get(key) != value and f"{key}_conf" in merged:
            del merged[f"{key}_conf"]
    for key, value in over.items():
        old = merged.get(key)
        if value and isinstance(old, dict) and isinstance(value, dict):
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


def read_options(words: str) -> dict[str, Any]:
    """What options of bestow_train say, as a configuration would."""
    if not words.split():
        return {}
    from espnet_bestow.task import BestowTask  # imports ESPnet, which files alone need not wait for

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{words.strip()}: {message}")

    parser = BestowTask.get_parser()
    parser.error = refuse
    # Of what was not given, nothing may be said.
    parser._defaults.clear()
    for action in parser._actions:
        if action.dest != "config":
            action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(words.split()))
    return {name: value for name, value in given.items() if name != "config"}


def read_setting(text: str) -> dict[str, Any]:
    """``policy_conf.step=2`` as a configuration."""
    place, equals, value = text.partition("=")
    if not equals or not place:
        raise ValueError(f"{text!r} is no setting such as policy_conf.step=2")
    setting = yaml.safe_load(value)
    for key in reversed(place.split(".")):
        setting = {key: setting}
    return setting


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, read, meaning in (
        ("--config", lambda path: (read_yaml, Path(path)), "A YAML file"),
        ("--setting", lambda text: (read_setting, text), "A value and its place, policy_conf.step=2"),
        ("--options", lambda words: (read_options, words), 'Options of bestow_train, --options="--max_epoch 3"'),
    ):
        parser.add_argument(name, dest="layers", action="append", type=read, default=[], help=meaning)
    parser.add_argument("--output", type=Path, required=True, help="File to write")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        args = get_parser().parse_args(cmd)
        merged: dict[str, Any] = {}
        for read, source in args.layers:
            merged = merge(merged, read(source))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        # Several machines may write it, and read it, at the same time.
        write_text_atomically(args.output, yaml.safe_dump(merged, sort_keys=False))


if __name__ == "__main__":
    main()
