"""The nvcc rule, and what nvcc makes of the kernels."""

import itertools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import setup_cuda

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def nvcc():
    home = setup_cuda.cuda_home()
    if home is None:
        pytest.skip("no nvcc on this machine")
    return home / "bin" / "nvcc"


EVERY_WIDTH = ("forward", "row_gradient", "key_gradient", "decode", "decode_clustered")
KERNELS = [*itertools.product(EVERY_WIDTH, (64, 128, 256)), ("short_gradient", 64), ("short_gradient", 128)]
HOT = f"""
#include "bestow/staircase_backward.cuh"
#include "bestow/staircase_decode.cuh"
#include "bestow/staircase_short_backward.cuh"
namespace bestow {{
{
    "\n".join(
        f"template __global__ void staircase_{kernel}<bfloat16, {width}>(const BestowAttention);"
        for kernel, width in KERNELS
    )
}
}}  // namespace bestow
"""


@pytest.mark.slow
def test_hot_kernels_do_not_spill(nvcc, tmp_path):
    source = tmp_path / "hot.cu"
    source.write_text(HOT, encoding="utf-8")
    command = [str(nvcc), *setup_cuda.FLAGS, "-gencode=arch=compute_90,code=sm_90", "-Xptxas", "-v", "-c", source]
    command += ["-o", tmp_path / "hot.o"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", said)]
    registers = [int(n) for n in re.findall(r"Used (\d+) registers", said)]
    assert len(registers) == len(KERNELS)
    assert spills == [0] * 2 * len(registers), said


def test_newer_gpus_decode_in_clusters():
    decode, others = (
        [word for word in setup_cuda.compiler(Path("nvcc"), ["86", "120"], source) if word.startswith("-gencode")]
        for source in (Path("launch_decode.cu"), Path("launch_forward.cu"))
    )
    assert others == ["-gencode=arch=compute_80,code=[sm_86,sm_120,compute_80]"]
    assert decode == [
        "-gencode=arch=compute_80,code=[sm_86,compute_80]",
        "-gencode=arch=compute_90,code=[sm_120,compute_90]",
    ]


@pytest.mark.parametrize(
    ("environment", "gpus", "archs"),
    [
        ({}, [], []),
        ({}, ["86"], ["86"]),
        ({"TORCH_CUDA_ARCH_LIST": "7.5;8.0 9.0a+PTX"}, ["86"], ["80", "90a"]),
        ({"TORCH_CUDA_ARCH_LIST": "8.0", "BESTOW_CUDA_ARCHS": "90,120"}, ["86"], ["90", "120"]),
        ({"BESTOW_CUDA_ARCHS": "75 80"}, [], ["80"]),
        ({}, ["70", "90"], ["90"]),
    ],
)
def test_architectures(monkeypatch, environment, gpus, archs):
    for name in ("BESTOW_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(setup_cuda, "visible_gpus", lambda: gpus)
    assert setup_cuda.architectures() == archs


@pytest.mark.parametrize("name", ["BESTOW_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"])
def test_a_list_of_too_old_architectures_is_named(monkeypatch, name):
    monkeypatch.delenv("BESTOW_CUDA_ARCHS", raising=False)
    monkeypatch.setenv(name, "Volta 7.5")
    with pytest.raises(RuntimeError, match=re.escape("Volta 7.5")):
        setup_cuda.architectures()


def test_a_wrong_cuda_home_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(RuntimeError, match=re.escape(str(tmp_path))):
        setup_cuda.cuda_home()


NVCC = """#!/bin/sh
if [ -n "$BESTOW_TEST_NVCC_FAILS" ]; then
    echo "crt/host_config.h:129:2: error: unsupported GNU version!" >&2
    exit 1
fi
while [ "$1" != -o ]; do shift; done
cp "$BESTOW_TEST_OBJECT" "$2"
"""


OBJECTS = len(setup_cuda.LAUNCHERS) + 1
"""The launchers and their registration."""


class TestBuild:
    """tools/build_ops.py with the host's compiler and an nvcc that only pretends, in a process of its own."""

    @pytest.fixture
    def build(self, tmp_path):
        compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
        if compiler is None:
            pytest.skip("no C++ compiler")
        home, made, source = tmp_path / "cuda", tmp_path / "kernel.o", tmp_path / "kernel.cpp"
        for folder in (home / "bin", home / "lib64"):
            folder.mkdir(parents=True)
        (home / "lib64" / "libcudart_static.a").touch()
        (home / "bin" / "nvcc").write_text(NVCC, encoding="utf-8")
        (home / "bin" / "nvcc").chmod(0o755)
        source.write_text("int kernel;", encoding="utf-8")
        subprocess.run([compiler, "-c", source, "-o", made], check=True)

        def run(**environment: str) -> subprocess.CompletedProcess:
            code = "import sys; sys.path.insert(0, 'tools'); from pathlib import Path; import build_ops as b\n"
            # ops_cuda.cpp takes torch's headers seconds to compile: an empty file stands for it.
            code += "part = b.cuda_part; import dataclasses; b.cuda_part = lambda wish: (p := part(wish)) and "
            code += f"dataclasses.replace(p, registration=Path({str(source)!r}))\n"
            code += f"o = b.cuda_objects([{compiler!r}], Path({str(tmp_path / 'build')!r}), [])\n"
            code += "assert all(step.output.exists() for step in o.steps)\nprint(len(o.steps), o.words)"
            clean = {"PATH": "/usr/bin:/bin", "CUDA_HOME": str(home), "BESTOW_TEST_OBJECT": str(made)}
            command = [sys.executable, "-c", code]
            return subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True)

        return run

    def test_nvcc_is_used_where_it_is(self, build):
        done = build(BESTOW_CUDA_ARCHS="90")
        assert done.stdout == f"{OBJECTS} CUDA (sm_90 and PTX of sm_80)\n", done.stderr

    def test_without_ninja_too(self, build, tmp_path):
        for name in ("sh", "cp", "as"):
            (tmp_path / name).symlink_to(shutil.which(name) or pytest.skip(f"no {name}"))
        done = build(PATH=str(tmp_path), BESTOW_CUDA_ARCHS="80 90")
        assert done.stdout == f"{OBJECTS} CUDA (sm_80 sm_90 and PTX of sm_80)\n", done.stderr
        # No nvidia-smi either, so no GPU.
        done = build(PATH=str(tmp_path))
        assert done.stdout == f"{OBJECTS} CUDA (PTX of sm_80)\n", done.stderr

    def test_cuda_can_be_left_out(self, build):
        done = build(BESTOW_CUDA="0")
        assert done.stdout == "0 no CUDA (BESTOW_CUDA=0)\n", done.stderr

    def test_a_machine_without_a_gpu_needs_none(self, build, tmp_path):
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)
        here = {"BESTOW_BUILD": "here", "PATH": f"{tmp_path}:/usr/bin:/bin"}
        done = build(**here)
        assert done.stdout == "0 no CUDA (no GPU here)\n", done.stderr
        done = build(**here, BESTOW_CUDA="1")
        assert done.stdout == f"{OBJECTS} CUDA (PTX of sm_80)\n", done.stderr
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 9.0\n", encoding="utf-8")
        done = build(**here)
        assert done.stdout == f"{OBJECTS} CUDA (sm_90 and PTX of sm_80)\n", done.stderr

    def test_an_nvcc_that_fails_costs_the_cuda_part_only(self, build):
        done = build(BESTOW_TEST_NVCC_FAILS="1")
        assert done.stdout.startswith("0 no CUDA: ") and "unsupported GNU version!" in done.stdout, done.stderr
        assert done.stdout.count("\n") == 1 and not done.stderr

    def test_unless_it_was_asked_for(self, build):
        done = build(BESTOW_TEST_NVCC_FAILS="1", BESTOW_CUDA="1")
        assert done.returncode != 0 and "unsupported GNU version!" in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_an_incomplete_toolkit_is_named(self, build, tmp_path):
        (tmp_path / "cuda" / "lib64" / "libcudart_static.a").unlink()
        done = build()
        assert "no libcudart_static.a" in done.stdout, done.stderr


def test_no_nvcc_is_nothing_unless_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(setup_cuda, "cuda_home", lambda: None)
    assert setup_cuda.cuda_part("") is None
    with pytest.raises(RuntimeError, match="no nvcc"):
        setup_cuda.cuda_part("1")
    with pytest.raises(ValueError, match="yes"):
        setup_cuda.cuda_part("yes")
