"""The configurations of a recipe as training sees them."""

import argparse
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml

from espnet_bestow.bin.merge_configs import merge, read_yaml
from espnet_bestow.task import BestowTask


def layered(layers: Sequence[Path]) -> dict[str, Any]:
    """Configurations put over each other as the stages do, each over those before it."""
    return reduce(merge, map(read_yaml, layers))


def training_arguments(
    layers: Sequence[Path], folder: Path, llm: Path, tasks: Sequence[str], step: int = 2, words: Sequence[str] = ()
) -> argparse.Namespace:
    """What training makes of such layers; unknown keys are errors."""
    config = layered(layers)
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    options = ["--config", str(path), "--output_dir", "out", "--llm_conf", f"path={llm}", *words]
    if config.get("policy") == "wait_k":
        options += ["--policy_conf", f"step={step}"]
    return BestowTask.get_parser().parse_args([*options, "--tasks", *tasks])
