"""Builds the host emulation of the CUDA kernels (csrc/tests) and runs them on CPU tensors."""

import hashlib
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch
from torch import Tensor

CSRC = Path(__file__).resolve().parents[2] / "csrc"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def build():
    """The module, compiled once per state of its sources; None where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    sources = sorted(path for folder in ("include/bestow", "cuda", "tests") for path in (CSRC / folder).glob("*"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in sources) + torch.__version__.encode())
    folder = Path(tempfile.gettempdir()) / f"bestow_emulated_{state.hexdigest()[:16]}"
    library = folder / f"bestow_emulated{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            half_done = Path(scratch) / library.name
            includes = [CSRC / "include", CSRC / "cuda", CSRC / "tests", Path(torch.__file__).parent / "include"]
            flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wno-unknown-pragmas"]
            command = [compiler, *flags, *(f"-I{path}" for path in [*includes, sysconfig.get_path("include")])]
            files = [CSRC / "tests" / "native_module.cpp", CSRC / "tests" / "emulated_launchers.cpp"]
            subprocess.run([*command, *map(str, files), "-o", str(half_done)], check=True)
            half_done.rename(library)  # another worker may have done the same meanwhile
    spec = importlib.util.spec_from_file_location("bestow_emulated", library)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Emulated:
    """The C face of the kernels behind torch tensors, as csrc/torch/ops_cuda.cpp offers it on a GPU."""

    def __init__(self, module):
        self.module = module

    def forward(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
        attention = self._attention(scale, visible, lse=lse, q=q, k=k, v=v, out=out)
        self._run(self.module.forward, attention, q.dtype)
        return out, lse

    def backward(self, grad_out, q, k, v, visible, out, lse, scale) -> tuple[Tensor, Tensor, Tensor]:
        grads = {f"grad_{name}": torch.full_like(x, torch.nan) for name, x in zip("qkv", (q, k, v), strict=True)}
        delta = torch.full_like(lse, torch.nan)
        attention = self._attention(
            scale, visible, lse=lse, delta=delta, q=q, k=k, v=v, out=out, grad_out=grad_out, **grads
        )
        self._run(self.module.backward, attention, q.dtype)
        return tuple(grads.values())

    def decode(self, q, k, v, visible, scale, splits, clusters=False) -> tuple[Tensor, Tensor]:
        out, lse = torch.full_like(q, torch.nan), torch.full(q.shape[:3], torch.nan)
        attention = self._attention(scale, visible, lse=lse, q=q, k=k, v=v, out=out)
        attention.splits = splits
        if not clusters:
            partial = torch.full((self.module.decode_scratch(attention),), torch.nan)
            attention.set_partial(partial.data_ptr())
        self._run(self.module.decode, attention, q.dtype)
        return out, lse

    def weights(self, q, k, visible, scale) -> Tensor:
        weights = torch.full((*q.shape[:3], k.shape[2]), torch.nan, dtype=q.dtype)
        attention = self._attention(scale, visible, q=q, k=k, weights=weights)
        self._run(self.module.weights, attention, q.dtype)
        return weights

    def _attention(self, scale, visible, lse=None, delta=None, **tensors):
        attention = self.module.Attention()
        for name, x in tensors.items():
            assert x.stride(3) == 1
            setattr(attention, name, self.module.Tensor(x.data_ptr(), *x.stride()[:3]))
        q, k = tensors["q"], tensors["k"]
        attention.batch, attention.heads, attention.queries, attention.width = q.shape
        attention.kv_heads, attention.keys = k.shape[1:3]
        attention.scale = scale
        attention.set_visible(visible.data_ptr())
        if lse is not None:
            attention.set_lse(lse.data_ptr())
        if delta is not None:
            attention.set_delta(delta.data_ptr())
        return attention

    @staticmethod
    def _run(function, attention, dtype):
        status = function(attention, DTYPES[dtype])
        if status != 0:
            raise RuntimeError(f"emulated kernel: status {status}")
