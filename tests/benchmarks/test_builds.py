"""bench_builds.py compiles the kernels of two commits and times them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_bestow.ops import native

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_it_runs():
    if native is None or shutil.which("c++") is None:
        pytest.skip("no compiler")
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    options = ["--isa", "portable", "--rounds", "1", "--batches", "1", "--widths", "8", "--dtypes", "float"]
    command = [sys.executable, "benchmarks/bench_builds.py", "HEAD", "HEAD", *options]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()[1:]
    assert [line[:10].strip() for line in lines] == ["forward", "backward", "one query"]
    assert all(float(number) > 0 for line in lines for number in line.split()[-3:])
