"""What nvcc makes of the kernels: no register spills, nothing but our own C names outside."""

import re
import subprocess
from pathlib import Path

import pytest

from tools import setup_cuda


@pytest.fixture(scope="module")
def nvcc():
    home = setup_cuda.cuda_home()
    if home is None:
        pytest.skip("no nvcc on this machine")
    return home / "bin" / "nvcc"


@pytest.mark.slow
@pytest.mark.parametrize("source", setup_cuda.LAUNCHERS)
def test_no_spills(nvcc, source, tmp_path):
    target = tmp_path / "launcher.o"
    said = setup_cuda.compile_launcher(nvcc, source, target, ["90"], "-Xptxas", "-v")
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert len(spills) == 2 * len(registers) >= 18
    assert sum(spills) == 0, said
    assert max(registers) <= 255
    names = subprocess.check_output(["nm", "-g", "--defined-only", target], text=True)
    assert "bestow_cuda_" in names


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
