"""Weights and inputs that need not be stored: drawn from their names, the same on every machine and version."""

import zlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def drawn(name: str, shape: Iterable[int], scale: float = 1.0) -> Tensor:
    """Normal numbers of a name; numpy keeps RandomState's stream as it is for good."""
    numbers = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(scale * numbers).float()


def fill(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrites parameters: matrices keep the size of what passes through, vectors are small, norms near one."""
    with torch.no_grad():
        for name, parameter in parameters:
            if parameter.dim() > 1:
                fan_in = parameter[0].numel() if "bias_" not in name else parameter.shape[-1]
                parameter.copy_(drawn(name, parameter.shape, fan_in**-0.5))
            else:
                near = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(near + drawn(name, parameter.shape, 0.1))
