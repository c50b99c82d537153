"""bench_shared_training.py times both ways, and finds the same weights."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs(tmp_path):
    out = tmp_path / "out.json"
    options = ["--millions", "0.6", "--steps", "1", "--rounds", "1", "--output", str(out)]
    command = [sys.executable, "benchmarks/bench_shared_training.py", *options]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    row = json.loads(out.read_text("utf-8"))
    assert row["weights apart"] < 1e-5 and row["processes"] == 2
    assert min(row["gloo, ms"], row["common memory, ms"], row["ratio"]) > 0.0
