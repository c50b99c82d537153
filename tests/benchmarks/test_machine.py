"""benchmarks/machine.py: what limits every kernel, measured."""

import time

import pytest
import torch

from benchmarks.machine import Machine
from tools.build_ops import ISAS, best_isa, cxx


@pytest.fixture(scope="module")
def machine():
    if not cxx():
        pytest.skip("no compiler")
    return Machine(best_isa()[0])


def seconds(work, *arguments):
    """The shortest of a few."""
    spent = []
    for _ in range(3):
        began = time.perf_counter()
        work(*arguments)
        spent.append(time.perf_counter() - began)
    return min(spent)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_multipliers(machine, dtype):
    """More products take longer, and no core of today does a teraflop."""
    little, much = (seconds(machine.multiply, operations, dtype) for operations in (2e7, 1e9))
    assert much > 5 * little
    assert 1e9 / much / torch.get_num_threads() < 1e12


def test_any_instruction_set_compiles():
    if not cxx():
        pytest.skip("no compiler")
    for isa in ISAS:
        Machine(isa)


def test_reading_takes_any_numbers(machine):
    for dtype in (torch.float32, torch.bfloat16):
        machine.read(torch.full((2, 3, 4), float("nan"), dtype=dtype))
