"""What is compiled for the CPU: all instruction sets, or the one that would run here."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = {
    "old": "fpu sse2 ssse3",
    "haswell": "fpu avx avx2 fma f16c",
    "no_fma": "fpu avx avx2",
    "cascadelake": "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni",
    "zen4": "avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_bf16",
}
BEST = {"old": "portable", "haswell": "avx2", "no_fma": "portable", "cascadelake": "avx512", "zen4": "avx512bf16"}


def build_ops(code: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs code with tools/build_ops.py as ``b``, for x86, in a process of its own, which setuptools may change."""
    before = "import platform, sys; from pathlib import Path; platform.machine = lambda: 'x86_64'; "
    code = f"{before}sys.path.insert(0, 'tools'); import build_ops as b\n{code}"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=ROOT, env={"PATH": "/usr/bin:/bin"} | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("cpu", FLAGS)
def test_the_best_instruction_set_of_a_cpu_is_found(cpu, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"model name\t: {cpu}\nflags\t\t: {FLAGS[cpu]}\n")
    done = build_ops(f"b.CPU = Path({str(tmp_path / 'cpuinfo')!r}); print(*b.best_isa())")
    assert done.stdout == f"{BEST[cpu]}\n", done.stderr


def test_a_cpu_that_says_nothing_gets_all(tmp_path):
    done = build_ops(f"b.CPU = Path({str(tmp_path / 'none')!r}); assert b.best_isa() == [*b.ISAS]")
    assert done.returncode == 0, done.stderr


def test_each_kernel_is_compiled_once_per_instruction_set_and_the_choice_knows_them():
    code = "for s in b.cpu_steps(['c++'], Path('o'), [], ['portable']): print(s.output.name, *s.command)"
    lines = [line.split() for line in build_ops(code).stdout.splitlines()]
    outputs = [words[0] for words in lines]
    assert "staircase_forward_portable.o" in outputs and len(outputs) == len(set(outputs))
    assert not [name for name in outputs if "avx" in name]
    chooses = next(words for words in lines if words[0] == "dispatch.o")
    assert [word for word in chooses if "BESTOW" in word] == ["-DBESTOW_WITH_portable"]


@pytest.mark.parametrize(
    ("wish", "here"), [({}, False), ({"BESTOW_BUILD": "all"}, False), ({"BESTOW_BUILD": "here"}, True)]
)
def test_all_is_compiled_unless_this_machine_is_enough(wish, here):
    assert build_ops("print(b.for_here())", **wish).stdout == f"{here}\n"


def test_another_wish_is_refused():
    done = build_ops("b.for_here()", BESTOW_BUILD="there")
    assert done.returncode != 0 and "BESTOW_BUILD=there must be all or here" in done.stderr
