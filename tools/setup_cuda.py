"""The CUDA part of the build: what nvcc does with csrc/cuda, for the rule that builds the extension module.

torch's own CUDAExtension wants a torch that was built with CUDA. The kernels need no torch at all, so nvcc is called
directly and its objects go to the linker; that works beside a CPU-only torch.
"""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
# Slowest first.
LAUNCHERS = tuple(CSRC / "cuda" / f"launch_{what}.cu" for what in ("backward", "forward", "decode", "weights"))
# No instruction newer than sm_80's is used: its PTX is made once, assembled for each architecture, and kept for
# those that are not named, whose driver assembles it at the first call. A machine without a GPU leaves them all to it.
PTX = "80"
# Decoding alone also has a kernel of clusters, which are there from this one on.
CLUSTERS = {"launch_decode": "90"}
FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{CSRC / 'include'}", f"-I{CSRC / 'cuda'}"]


@dataclass(frozen=True)
class CudaPart:
    """What the extension module needs besides its CPU part."""

    kernels: tuple[Path, ...]
    compile: Callable[[Path], list[str]]  # the command for one of them, which lacks source and output only
    registration: Path  # for the C++ compiler, with torch's headers
    link: list[str]
    made_for: str  # in words


def cuda_home() -> Path | None:
    """CUDA_HOME, or where the nvcc on PATH lives, or the nvidia package of pip that brings it."""
    named = os.environ.get("CUDA_HOME")
    if named:
        if not (Path(named) / "bin" / "nvcc").exists():
            raise RuntimeError(f"CUDA_HOME={named} has no bin/nvcc")
        return Path(named)
    found = shutil.which("nvcc")
    if found:
        # A wrapper on PATH may stand elsewhere: nvcc itself tells where it belongs (TOP=...).
        told = subprocess.run([found, "--dryrun", "x.cu"], capture_output=True, text=True, check=False).stderr
        tops = [line.split("TOP=", 1)[1].strip() for line in told.splitlines() if "TOP=" in line]
        return Path(tops[0]).resolve() if tops else Path(found).resolve().parents[1]
    packages = sorted((Path(sysconfig.get_path("purelib")) / "nvidia").glob("*/bin/nvcc"))
    return packages[-1].parents[1] if packages else None


def visible_gpus() -> list[str]:
    """Compute capabilities of this machine's GPUs, as in ["90"]; torch need not be installed for that."""
    query = shutil.which("nvidia-smi")
    if query is None:
        return []
    command = [query, "--query-gpu=compute_cap", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = told.stdout.split() if told.returncode == 0 else []
    return sorted({line.replace(".", "") for line in lines if line.replace(".", "").isdigit()}, key=int)


def architectures() -> list[str]:
    """BESTOW_CUDA_ARCHS ("90" or "80 90"), else torch's TORCH_CUDA_ARCH_LIST, else the GPUs here.

    A list that was made for all of torch, and a machine, may hold what is too old for us.
    """
    for name in ("BESTOW_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"):
        if named := os.environ.get(name):  # "7.5;8.0 9.0a+PTX"
            listed = re.sub(r"[;,]", " ", named).replace("+PTX", "").replace(".", "").split()
            if fit := _new_enough(listed):
                return fit
            raise RuntimeError(f"{name}={named} has nothing from 8.0 on")
    return _new_enough(visible_gpus())


def _new_enough(archs: list[str]) -> list[str]:
    return [arch for arch in archs if arch.rstrip("af").isdigit() and int(arch.rstrip("af")) >= int(PTX)]


def compiler(nvcc: Path, archs: list[str], source: Path) -> list[str]:
    """The command that makes one object with machine code for ``archs`` and PTX for the others."""
    command, level = [str(nvcc), *FLAGS], {arch: int(arch.rstrip("af")) for arch in archs}
    bounds = [PTX, *filter(None, [CLUSTERS.get(source.stem)])]
    for ptx, above in zip(bounds, [*bounds[1:], "1000"], strict=True):
        codes = [f"sm_{arch}" for arch in archs if int(ptx) <= level[arch] < int(above)]
        command.append(f"-gencode=arch=compute_{ptx},code=[{','.join([*codes, f'compute_{ptx}'])}]")
    return command


def cuda_part(wish: str) -> CudaPart | None:
    """How to build for CUDA; None where there is no nvcc, or BESTOW_CUDA (``wish``) is 0.

    Raises:
        RuntimeError: the toolkit is incomplete, or ``wish`` is 1 and there is none.
        ValueError: another ``wish``.
    """
    if wish not in ("", "0", "1"):
        raise ValueError(f"BESTOW_CUDA={wish} must be 0 or 1")
    if wish == "0":
        return None
    home = cuda_home()
    if home is None:
        if wish == "1":
            raise RuntimeError("BESTOW_CUDA=1, but there is no nvcc")
        return None
    folders = [folder for folder in (home / "lib64", home / "lib") if (folder / "libcudart_static.a").exists()]
    if not folders:
        raise RuntimeError(f"{home} has no libcudart_static.a")
    archs = architectures()
    return CudaPart(
        LAUNCHERS,
        partial(compiler, home / "bin" / "nvcc", archs),
        CSRC / "torch" / "ops_cuda.cpp",
        [f"-L{folders[0]}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"],
        "".join(f"sm_{arch} " for arch in archs) + "and " * bool(archs) + f"PTX of sm_{PTX}",
    )
