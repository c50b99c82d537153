"""Runs code in a process whose CPU kernels are those of one instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_bestow import ops

ROOT = Path(__file__).parents[2]
ISAS = ["avx512bf16", "avx512", "avx2", "portable"]


def run_with(isa: str, code: str) -> None:
    """Fails with what the code fails with; skips where this CPU, or this build, cannot run it."""
    if ops.native is None:
        pytest.skip("the compiled ops were not built")
    code = f"from espnet_bestow.ops import native\nassert native.cpu_isa() == {isa!r}\n{code}"
    environment = os.environ | {"BESTOW_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    if f"BESTOW_CPU_ISA={isa} does not run on this CPU" in done.stderr:
        pytest.skip(f"this CPU has no {isa}")
    assert done.returncode == 0, done.stderr
