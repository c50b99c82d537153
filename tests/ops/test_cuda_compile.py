"""What nvcc makes of the kernels: no register spills, nothing but our own C names outside."""

import re
import shutil
import subprocess

import pytest

import setup_cuda


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
    names = subprocess.run([shutil.which("nm"), "-g", "--defined-only", target], capture_output=True, text=True, check=True)
    assert "bestow_cuda_" in names.stdout


def test_knows_only_architectures_of_this_nvcc(nvcc, monkeypatch):
    monkeypatch.delenv("BESTOW_CUDA_ARCHS", raising=False)
    assert set(setup_cuda.architectures(nvcc)) <= set(setup_cuda.ARCHITECTURES)
    monkeypatch.setenv("BESTOW_CUDA_ARCHS", "90,120")
    assert setup_cuda.architectures(nvcc) == ["90", "120"]


def test_a_wrong_cuda_home_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path))):
        setup_cuda.cuda_home()


def test_without_nvcc_there_is_no_cuda_part(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(setup_cuda, "cuda_home", lambda: None)
    assert setup_cuda.cuda_part(tmp_path) is None
    assert capsys.readouterr().out.count("\n") == 1
