"""Builds csrc/ into espnet_bestow/ops/_C.abi3.so; setup.py hands this to setuptools.

A rule of its own rather than torch's: every source has its own flags (one instruction set each), the CUDA sources must
build against a CPU-only torch too, and none of it needs to import torch.
"""

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from setup_cuda import cuda_part, visible_gpus
from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parents[1]
CSRC = ROOT / "csrc"
TARGET = "0x020b000000000000"  # torch 2.11: the oldest whose stable interface is used
PYTHON = "0x030c0000"  # Python 3.12, the limited interface's

COMMON = [
    "-std=c++17",
    "-O3",
    "-fno-math-errno",  # nobody reads errno, for whose sake no loop with a square root would become vectors
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    f"-I{CSRC}/include",
]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mf16c"]
ISAS = {"portable": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISAS |= {"avx2": ["-mavx2", "-mfma", "-mf16c"], "avx512": AVX512, "avx512bf16": [*AVX512, "-mavx512bf16"]}
CPU = Path("/proc/cpuinfo")

# Sources compiled once per instruction set.
KERNELS = (
    *("staircase_forward", "staircase_backward", "few_queries"),
    *("panel_linear", "few_rows", "chunk", "taps", "log_mel", "running_mvn", "kernels"),
)
# Sources that leave the CPU's choice to others or need none.
PLAIN = ("dispatch", "best_path")
# Sources that register ops.
REGISTRATIONS = (
    *("ops", "llama_token", "connector_token", "chunk_step", "subsampling", "features", "ctc_path", "depthwise"),
)


@dataclass
class Step:
    """One compiler run."""

    output: Path
    source: Path
    command: list[str]


def torch_folder() -> Path | None:
    """Where torch is installed, if it is."""
    found = importlib.util.find_spec("torch")
    return Path(found.origin).parent if found and found.origin else None


def extensions() -> list[Extension]:
    """The native module, where torch's headers are at hand (not in an isolated build)."""
    if torch_folder() is None:
        return []
    sources = [str(path.relative_to(ROOT)) for path in sorted(CSRC.glob("*/*.cpp")) if path.parent.name != "tests"]
    return [Extension("espnet_bestow.ops._C", sources, py_limited_api=True, optional=True)]


def cxx() -> list[str]:
    """The C++ compiler's command: CXX, which may be several words ("ccache g++"), or what is there; [] for none."""
    found = (shlex.quote(path) for path in map(shutil.which, ("c++", "g++", "clang++")) if path)
    return shlex.split(os.environ.get("CXX") or next(found, ""))


def for_here() -> bool:
    """Whether BESTOW_BUILD=here asks for no more than this machine can run: without a GPU, a third of the time.

    Raises:
        ValueError: BESTOW_BUILD is another word, unless that is ``all``.
    """
    wish = os.environ.get("BESTOW_BUILD", "")
    if wish not in ("", "all", "here"):
        raise ValueError(f"BESTOW_BUILD={wish} must be all or here")
    return wish == "here"


def best_isa() -> list[str]:
    """The instruction set whose kernels would run here; all of them where the CPU does not say what it can."""
    if not CPU.exists():
        return [*ISAS]
    able = set(CPU.read_text(encoding="utf-8").replace("avx512_bf16", "avx512bf16").split())
    return [isa for isa, flags in ISAS.items() if able.issuperset(flag.removeprefix("-m") for flag in flags)][-1:]


def cpu_steps(compiler: list[str], into: Path, extra: list[str], isas: list[str]) -> list[Step]:
    """Compiles the kernels once per instruction set, and what needs no kernel or chooses among them."""
    common = [*compiler, *COMMON, *extra]
    steps = [
        Step(into / f"{kernels}_{isa}.o", CSRC / "cpu" / f"{kernels}.cpp", [*common, f"-DBESTOW_ISA={isa}", *ISAS[isa]])
        for kernels in KERNELS
        for isa in isas
    ]
    common += [f"-DBESTOW_WITH_{isa}" for isa in isas]
    return [*steps, *(Step(into / f"{name}.o", CSRC / "cpu" / f"{name}.cpp", common) for name in PLAIN)]


def torch_step(compiler: list[str], into: Path, source: Path, include: list[str]) -> Step:
    """Compiles one source that registers ops."""
    defines = [f"-DTORCH_TARGET_VERSION={TARGET}", f"-DPy_LIMITED_API={PYTHON}"]
    return Step(into / f"{source.stem}.o", source, [*compiler, *COMMON, *defines, *include])


def run(steps: list[Step], into: Path, output: TextIO | None = None) -> None:
    """Runs the steps on all cores, by ninja where there is one (then only what changed).

    What the compilers say goes to ``output``, or the terminal.
    """
    into.mkdir(parents=True, exist_ok=True)
    call = partial(subprocess.run, check=True, stdout=output, stderr=output)
    ninja = shutil.which("ninja")
    if ninja is None:
        commands = [[*step.command, "-c", str(step.source), "-o", str(step.output)] for step in steps]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(call, commands))
        return
    rules = ["rule compile", " command = $run -MMD -MF $out.d -c $in -o $out", " depfile = $out.d", " deps = gcc"]
    for step in steps:
        rules += [f"build {_ninja(step.output)}: compile {_ninja(step.source)}", f" run = {_shell(step.command)}"]
    (into / "build.ninja").write_text("\n".join(rules) + "\n", encoding="utf-8")
    call([ninja, "--quiet", "-C", str(into)])


def _ninja(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _shell(command: list[str]) -> str:
    return shlex.join(command).replace("$", "$$")


@dataclass
class CudaObjects:
    """What the module is linked with for GPUs, if anything, and the words for it."""

    steps: list[Step]
    link: list[str]
    words: str


def cuda_objects(compiler: list[str], into: Path, include: list[str]) -> CudaObjects:
    """Compiles the CUDA part; a toolkit that fails costs the GPU only, unless BESTOW_CUDA=1 asked for it."""
    wish, log = os.environ.get("BESTOW_CUDA", ""), into / "nvcc.log"
    if not wish and for_here() and not visible_gpus():
        return CudaObjects([], [], "no CUDA (no GPU here)")
    try:
        part = cuda_part(wish)
        if part is None:
            return CudaObjects([], [], f"no CUDA ({'BESTOW_CUDA=0' if wish == '0' else 'no nvcc'})")
        steps = [Step(into / f"{source.stem}.o", source, part.compile(source)) for source in part.kernels]
        steps += [torch_step(compiler, into, part.registration, include)]
        into.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            run(steps, into, output)
        return CudaObjects(steps, part.link, f"CUDA ({part.made_for})")
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = str(error)
        if isinstance(error, subprocess.CalledProcessError):
            said = (
                line for line in log.read_text(encoding="utf-8").splitlines() if re.search(r"\b(error|fatal)\b", line)
            )
            reason = f"{next(said, 'nvcc failed').strip()} (all of it in {log})"
        if wish == "1":
            raise SystemExit(f"espnet_bestow: BESTOW_CUDA=1: {reason}") from error
        return CudaObjects([], [], f"no CUDA: {reason}")


class BuildOps(build_ext):
    """Compiles and links the module; when that fails the package installs without it and runs on its PyTorch twin."""

    def run(self) -> None:
        """See setuptools, which takes a failure of ours for a warning: the module of an older build must not stay."""
        super().run()
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            if self.inplace and not (Path(self.build_lib) / name).exists():
                (ROOT / name).unlink(missing_ok=True)

    def build_extension(self, ext: Extension) -> None:
        """See setuptools."""
        library = Path(self.get_ext_fullpath(ext.name))
        library.unlink(missing_ok=True)
        compiler, torch = cxx(), torch_folder()
        if not compiler or torch is None:
            raise CompileError("no C++ compiler: attention runs on PyTorch alone")
        into = Path(self.build_temp).resolve() / "ops"
        include = [f"-isystem{torch / 'include'}", *(f"-isystem{folder}" for folder in self.include_dirs)]
        isas = best_isa() if for_here() else [*ISAS]
        steps = cpu_steps(compiler, into, [], isas)
        steps += [torch_step(compiler, into, CSRC / "torch" / f"{name}.cpp", include) for name in REGISTRATIONS]
        try:
            run(steps, into)
            cuda = cuda_objects(compiler, into / "cuda", include)
            library.parent.mkdir(parents=True, exist_ok=True)
            objects = [str(step.output) for step in [*steps, *cuda.steps]]
            command = [*compiler, "-shared", *objects, f"-L{torch / 'lib'}", "-ltorch_cpu", "-lc10", *cuda.link]
            if platform.system() == "Darwin":
                command += ["-undefined", "dynamic_lookup"]
            subprocess.run([*command, "-o", str(library)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise CompileError(f"attention runs on PyTorch alone, its native build failed: {error}") from error
        print(f"espnet_bestow: compiled attention for the CPU ({', '.join(isas)}); {cuda.words}")
