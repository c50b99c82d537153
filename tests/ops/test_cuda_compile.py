"""The nvcc rule, and what nvcc makes of the kernels."""

import re
from pathlib import Path

import pytest

from tools import setup_cuda


@pytest.fixture(scope="module")
def nvcc():
    home = setup_cuda.cuda_home()
    if home is None:
        pytest.skip("no nvcc on this machine")
    return home / "bin" / "nvcc"


HOT = """
#include "bestow/staircase_backward.cuh"
#include "bestow/staircase_decode.cuh"
namespace bestow {
template __global__ void staircase_forward<bfloat16, 128>(const BestowAttention);
template __global__ void staircase_row_gradient<bfloat16, 128>(const BestowAttention);
template __global__ void staircase_key_gradient<bfloat16, 128>(const BestowAttention);
template __global__ void staircase_decode<bfloat16, 128>(const BestowAttention);
}  // namespace bestow
"""


@pytest.mark.slow
def test_hot_kernels_do_not_spill(nvcc, tmp_path):
    source = tmp_path / "hot.cu"
    source.write_text(HOT, encoding="utf-8")
    said = setup_cuda.compile_launcher(nvcc, source, tmp_path / "hot.o", ["90"], "-Xptxas", "-v")
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == 4
    assert spills == [0] * 8, said


def test_knows_only_architectures_of_this_nvcc(nvcc, monkeypatch):
    monkeypatch.setattr(setup_cuda, "visible_gpus", lambda: [])
    monkeypatch.delenv("BESTOW_CUDA_ARCHS", raising=False)
    assert set(setup_cuda.architectures(nvcc)) <= set(setup_cuda.ARCHITECTURES)
    monkeypatch.setenv("BESTOW_CUDA_ARCHS", "90,120")
    assert setup_cuda.architectures(nvcc) == ["90", "120"]


def test_a_wrong_cuda_home_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path))):
        setup_cuda.cuda_home()


@pytest.mark.parametrize(("home", "wish"), [(None, ""), (Path("/cuda"), ""), (Path("/cuda"), "0")])
def test_no_cuda_part_is_said_in_one_line(monkeypatch, tmp_path, capsys, home, wish):
    monkeypatch.setenv("BESTOW_CUDA", wish)
    monkeypatch.setattr(setup_cuda, "cuda_home", lambda: home)
    monkeypatch.setattr(setup_cuda, "visible_gpus", lambda: [])
    assert setup_cuda.cuda_part(tmp_path) is None
    assert capsys.readouterr().out.count("\n") == 1


def test_a_wish_that_cannot_be_fulfilled_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(setup_cuda, "cuda_home", lambda: None)
    monkeypatch.setenv("BESTOW_CUDA", "1")
    with pytest.raises(RuntimeError, match="no nvcc"):
        setup_cuda.cuda_part(tmp_path)
    monkeypatch.setenv("BESTOW_CUDA", "yes")
    with pytest.raises(ValueError, match="yes"):
        setup_cuda.cuda_part(tmp_path)
