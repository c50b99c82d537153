"""The CUDA part of the build: csrc/cuda through nvcc, for setup.py.

torch's own CUDAExtension wants a torch that was built with CUDA. The kernels need no torch at all, so this calls nvcc
itself and hands plain objects to the linker; it works beside a CPU-only torch.
"""

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parent / "csrc"
LAUNCHERS = ("launch_forward.cu", "launch_backward.cu", "launch_decode.cu")
ARCHITECTURES = ("80", "90", "100", "120")
FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{CSRC / 'include'}", f"-I{CSRC / 'cuda'}"]


@dataclass(frozen=True)
class CudaPart:
    """What the extension module needs besides its CPU part."""

    sources: list[str]  # for the C++ compiler
    objects: list[str]  # for the linker
    link_args: list[str]


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


def architectures(nvcc: Path) -> list[str]:
    """BESTOW_CUDA_ARCHS ("90" or "80 90"), else all ours that this nvcc knows."""
    named = os.environ.get("BESTOW_CUDA_ARCHS")
    if named:
        return named.replace(",", " ").split()
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in ARCHITECTURES if f"sm_{arch}" in known]


def compile_launcher(nvcc: Path, source: str, target: Path, archs: list[str], *more: str) -> str:
    """One object with machine code for all ``archs`` and PTX of the last; returns what nvcc said."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    command = [str(nvcc), *FLAGS, *targets, *more, "-c", str(CSRC / "cuda" / source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def cuda_part(build: Path) -> CudaPart | None:
    """Compiles what is older than its sources into ``build``; None (said in one line) where there is no nvcc."""
    home = cuda_home()
    if home is None:
        print("espnet_bestow: no nvcc found, building without CUDA kernels")
        return None
    nvcc = home / "bin" / "nvcc"
    archs = architectures(nvcc)
    build.mkdir(parents=True, exist_ok=True)
    headers = [*CSRC.glob("include/bestow/*"), *CSRC.glob("cuda/*.cuh")]
    objects = []
    for source in LAUNCHERS:
        target = build / f"{Path(source).stem}.{'-'.join(archs)}.o"
        newest = max(path.stat().st_mtime for path in [*headers, CSRC / "cuda" / source])
        if not target.exists() or target.stat().st_mtime < newest:
            compile_launcher(nvcc, source, target, archs, "--threads", "0")
        objects.append(str(target))
    folders = [folder for folder in (home / "lib64", home / "lib") if (folder / "libcudart_static.a").exists()]
    if not folders:
        raise RuntimeError(f"{home} has no libcudart_static.a")
    link_args = [f"-L{folders[0]}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return CudaPart([str(CSRC / "torch" / "ops_cuda.cpp")], objects, link_args)
