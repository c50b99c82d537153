"""bench_shared_gradients.py times both ways, and finds the same gradients."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_runs(tmp_path):
    out = tmp_path / "out.json"
    options = ["--millions", "0.6", "--steps", "1", "--rounds", "1", "--output", str(out)]
    command = [sys.executable, "benchmarks/bench_shared_gradients.py", *options]
    subprocess.run(command, cwd=ROOT, check=True, timeout=60)
    row = json.loads(out.read_text("utf-8"))
    assert row["same bits"] and row["processes"] == 2
    assert min(row["gloo, ms"], row["common memory, ms"], row["ratio"]) > 0.0
