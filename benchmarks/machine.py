"""What this CPU gives to a program that does nothing else: the limit over what any kernel can do with it.

How fast two threads are depends on what else the machine does, and on whether they share a core, which a virtual
machine may change at any time. So the limit is measured where it is wanted, in turns with what it limits.
"""

import ctypes
import math
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))
from build_ops import COMMON, ISAS, cxx  # noqa: E402


class Machine:
    """Its multipliers and its memory, used by torch's threads: others would wait for those to come to rest.

    Args:
        isa: the instruction set whose multipliers are meant.

    Raises:
        SystemExit: there is no compiler.
    """

    def __init__(self, isa: str):
        if not (compiler := cxx()):
            raise SystemExit("error: what the machine can do is measured by a C++ program; install a compiler")
        source = ROOT / "csrc" / "tests" / "multipliers.cpp"
        command = [*compiler, *COMMON, *ISAS[isa], f"-DBESTOW_ISA={isa}", "-fvisibility=default", "-shared"]
        with TemporaryDirectory() as folder:
            library = Path(folder) / "multipliers.so"
            subprocess.run([*command, str(source), "-o", str(library)], check=True)
            self._library = ctypes.CDLL(str(library))
        self._torch = ctypes.CDLL(torch._C.__file__)  # names are found in what it is linked with, too

    def multiply(self, operations: float, dtype: str) -> None:
        """Multiplies and adds in registers.

        Args:
            operations: how many multiplications and additions, together.
            dtype: "fp32", or "bf16" for what bfloat16 kernels multiply on this CPU.
        """
        product = ctypes.cast(getattr(self._library, f"multiply_{dtype}"), ctypes.c_void_p)
        threads = torch.get_num_threads()
        share = ctypes.c_int64(math.ceil(operations / threads))
        first, last, grain = (ctypes.c_int64(n) for n in (0, threads, 1))
        if self._torch.torch_parallel_for(first, last, grain, product, ctypes.byref(share)):
            raise RuntimeError("torch's threads did not run")

    @staticmethod
    def read(*tensors: Tensor) -> None:
        """Every number once, whatever it means."""
        for tensor in tensors:
            tensor.flatten().view(torch.float32).sum()
