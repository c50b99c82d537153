"""The CUDA part of the build: csrc/cuda through nvcc, for the rule that builds the extension module.

torch's own CUDAExtension wants a torch that was built with CUDA. The kernels need no torch at all, so this calls nvcc
itself and hands plain objects to the linker; it works beside a CPU-only torch.
"""

import os
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
LAUNCHERS = tuple(CSRC / "cuda" / f"launch_{what}.cu" for what in ("forward", "backward", "decode"))
ARCHITECTURES = ("80", "90", "100", "120")
FLAGS = ["-std=c++20", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{CSRC / 'include'}", f"-I{CSRC / 'cuda'}"]


@dataclass(frozen=True)
class CudaPart:
    """What the extension module needs besides its CPU part."""

    sources: list[Path]  # for the C++ compiler, with torch's headers
    objects: list[Path]  # for the linker
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


def visible_gpus() -> list[str]:
    """Compute capabilities of this machine's GPUs, as in ["90"]; torch need not be installed for that."""
    query = shutil.which("nvidia-smi")
    if query is None:
        return []
    command = [query, "--query-gpu=compute_cap", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = told.stdout.split() if told.returncode == 0 else []
    return sorted({line.replace(".", "") for line in lines if line.replace(".", "").isdigit()}, key=int)


def architectures(nvcc: Path) -> list[str]:
    """BESTOW_CUDA_ARCHS ("90" or "80 90"), else those of the GPUs here, else all ours that this nvcc knows."""
    named = os.environ.get("BESTOW_CUDA_ARCHS")
    if named:
        return named.replace(",", " ").split()
    here = visible_gpus()
    if here:
        return here
    known = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()
    return [arch for arch in ARCHITECTURES if f"sm_{arch}" in known]


def compile_launcher(nvcc: Path, source: Path, target: Path, archs: list[str], *more: str) -> str:
    """One object with machine code for all ``archs`` and PTX of the last; returns what nvcc said."""
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    command = [str(nvcc), *FLAGS, *targets, *more, "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def cuda_part(build: Path) -> CudaPart | None:
    """Compiles what is older than its sources into ``build``; None (said in one line) where CUDA is not built.

    It is built where there are nvcc and a GPU. BESTOW_CUDA=1 builds it without a GPU (for all architectures, which
    takes minutes), BESTOW_CUDA=0 never.
    """
    wish = os.environ.get("BESTOW_CUDA", "")
    if wish not in ("", "0", "1"):
        raise ValueError(f"BESTOW_CUDA={wish} must be 0 or 1")
    home = cuda_home()
    if wish == "1" and home is None:
        raise RuntimeError("BESTOW_CUDA=1, but there is no nvcc")
    if wish == "0" or home is None:
        print(f"espnet_bestow: no CUDA kernels ({'BESTOW_CUDA=0' if wish == '0' else 'no nvcc'})")
        return None
    if wish == "" and not visible_gpus():
        print("espnet_bestow: no CUDA kernels (no GPU here; BESTOW_CUDA=1 builds them all the same)")
        return None
    nvcc = home / "bin" / "nvcc"
    archs = architectures(nvcc)
    build.mkdir(parents=True, exist_ok=True)
    headers = [*CSRC.glob("include/bestow/*"), *CSRC.glob("cuda/*.cuh")]
    objects = []
    for source in LAUNCHERS:
        target = build / f"{source.stem}.{'-'.join(archs)}.o"
        newest = max(path.stat().st_mtime for path in [*headers, source])
        if not target.exists() or target.stat().st_mtime < newest:
            compile_launcher(nvcc, source, target, archs)
        objects.append(target)
    folders = [folder for folder in (home / "lib64", home / "lib") if (folder / "libcudart_static.a").exists()]
    if not folders:
        raise RuntimeError(f"{home} has no libcudart_static.a")
    link_args = [f"-L{folders[0]}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    return CudaPart([CSRC / "torch" / "ops_cuda.cpp"], objects, link_args)
