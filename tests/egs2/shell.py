"""Run the recipe scripts from a scratch recipe folder."""

import subprocess
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
