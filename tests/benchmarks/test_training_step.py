"""The benchmark of a training step measures what it says, and runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.bench_training_step import CONTESTANTS, Problem, Step
from espnet_bestow.ops import native

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("policy", ["wait-k", "offline"])
@pytest.mark.parametrize("part", ["connector", "connector + LLM"])
def test_contestants_train_the_same(part, policy):
    step = Step(Problem("tiny", part, policy, "fp32", "cpu"))
    gradients = {}
    for name in CONTESTANTS:
        step.forget()
        torch.manual_seed(0)
        step.with_attention(name).backward()
        trained = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
        gradients[name] = torch.cat([parameter.grad.flatten() for parameter in trained])
    assert gradients["ours"].abs().max() > 0
    for other in gradients.values():
        torch.testing.assert_close(gradients["ours"], other)


@pytest.mark.slow
@pytest.mark.skipif(native is None, reason="the compiled ops were not built")
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory of a process is Linux's")
def test_it_runs(tmp_path):
    out = tmp_path / "step.json"
    command = [sys.executable, "benchmarks/bench_training_step.py", "--size", "tiny", "--part", "connector"]
    command += ["--rounds", "1", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    wait_k, offline = json.loads(out.read_text())["rows"]
    assert wait_k["density"] < offline["density"] == 1
    for row in (wait_k, offline):
        assert row["ratio"] > 0
        for figures in (row["milliseconds"], row["mebibytes"]):
            assert set(figures) == set(CONTESTANTS) and min(figures.values()) > 0
