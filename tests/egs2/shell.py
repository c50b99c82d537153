"""Run the recipe scripts from a scratch recipe folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

EGS2 = Path(__file__).resolve().parents[2] / "egs2"
TEMPLATE = EGS2 / "TEMPLATE" / "bestow1"


def run(folder: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in ``folder``; whether it succeeds is for the caller to judge."""
    return subprocess.run([str(word) for word in words], cwd=folder, capture_output=True, text=True, check=False)


def bash(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines of bash with the helpers of the recipes loaded, as bestow.sh loads them."""
    helpers = "".join(f". {TEMPLATE / 'scripts' / name}.sh\n" for name in ("stages", "jobs"))
    return run(folder, "bash", "-c", f"set -euo pipefail\n{helpers}{script}")


def copy_recipe(root: Path, name: str) -> Path:
    """A recipe with what it links to, as in a clone in which nothing was run; returns its folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "espnet_bestow").symlink_to(EGS2.parent / "espnet_bestow")
    for part in ("TEMPLATE", name):
        # What an earlier run left in the checkout is no part of the recipe.
        skip = shutil.ignore_patterns("data", "dump", "exp")
        shutil.copytree(EGS2 / part, root / "egs2" / part, symlinks=True, ignore=skip)
    return root / "egs2" / name / "bestow1"


def prepare_data(folder: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    """Stage 1 of a recipe, without the rest of bestow.sh."""
    words = ["local/data.sh", *map(str, options)]
    env = {**os.environ, "python": sys.executable}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
