"""A device that is not the CPU, on a machine that has only a CPU.

Its tensors keep their numbers here but say that they are elsewhere; as on a GPU, they do not mix with tensors that are
not. What a program forgot to move, or asks of the CPU's memory, fails here as it would there, and whatever is chosen by
the device takes its other branch. Numbers are the CPU's, so results can be compared closely.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"
NEAR = torch.device("cpu")


class _Module:
    """What ``torch.far`` is. Nobody else in the process should find a device there."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return False

    def device_count(self) -> int:
        return 0

    def current_device(self) -> int:
        return 0

    def manual_seed_all(self, seed: int) -> None:
        """Numbers are drawn here."""

    def _is_in_bad_fork(self) -> bool:
        return False


class _Hook(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return False

    def has_primary_context(self, dev_id: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


# At once: the first backward pass of a process makes a queue for each device that it then has.
_setup_privateuseone_for_python_backend(NAME, _Module(), _Hook())
aten = torch.ops.aten

_MOVES = (aten._to_copy, aten.to, aten.copy_)
_ASKS_FOR_A_SHAPE = (aten.expand_as, aten.view_as)
_INDEXES = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)  # may be indexed by what is here
_LENGTHS = (aten._pack_padded_sequence,)  # takes lengths, and gives some, that are here
_MADE_FROM_DATA = (torch.tensor, torch.as_tensor)


class Far(Tensor):
    """A tensor there, around one here."""

    near: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near: Tensor) -> "Far":
        return Tensor._make_wrapper_subclass(
            cls,
            near.shape,
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device(NAME, 0),
            requires_grad=near.requires_grad,
        )

    def __init__(self, near: Tensor):
        self.near = near.detach()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.near!r})"

    def tolist(self) -> list:
        """Copies, as a GPU's tensor does."""
        return self.near.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _run(func, args, kwargs or {})


class TwoDevicesError(RuntimeError):
    """Tensors of two devices met."""


def _each(function: Callable[[Any], Any], x: Any) -> Any:
    """Of all that operations take and give: in lists and so on, one by one (torch's tree_map takes twice as long)."""
    if isinstance(x, list | tuple):
        return type(x)(_each(function, item) for item in x)
    if isinstance(x, dict):
        return {key: _each(function, item) for key, item in x.items()}
    return function(x)


def _tensors(x: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for item in x:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, list | tuple):
            found += _tensors(item)
    return found


def _near(x: object) -> object:
    if isinstance(x, torch.device) and x.type == NAME:
        return NEAR
    return x.near if isinstance(x, Far) else x


def _run(func, args: tuple, kwargs: dict):  # type: ignore[no-untyped-def]
    packet = func.overloadpacket
    if packet is aten._fused_sdp_choice:
        return 0  # what the CPU would choose is not there
    tensors = _tensors([*args, *kwargs.values()])
    device = next((x for x in (*args, *kwargs.values()) if isinstance(x, torch.device)), None)
    there = any(isinstance(x, Far) for x in tensors)
    if there and packet not in _MOVES + _ASKS_FOR_A_SHAPE:
        meeting = args[:1] if packet in _LENGTHS else (*args[:1], *args[2:3]) if packet in _INDEXES else tensors
        here = [tuple(x.shape) for x in meeting if isinstance(x, Tensor) and not isinstance(x, Far) and x.dim()]
        if here:
            raise TwoDevicesError(f"{func}: tensors of shapes {here} are on the CPU, the others are not")
    out = func(*_each(_near, args), **_each(_near, kwargs))
    if device is not None:
        there = device.type == NAME
    known = {id(_near(x)): x for x in tensors}  # in place: the argument itself comes back

    def back(x: object) -> object:
        if not isinstance(x, Tensor) or isinstance(x, Far):
            return x
        return known[id(x)] if id(x) in known else Far(x) if there else x

    if packet in _LENGTHS:
        return back(out[0]), out[1]
    return _each(back, out)


class _Operations(TorchDispatchMode):
    """New tensors, and those that move."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What Python's side of torch does out of sight of the operations."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = dict(kwargs or {})
        if func in _MADE_FROM_DATA and _near(_device(kwargs.get("device"))) is NEAR:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.stft and isinstance(args[0], Far):  # turns a tensor around in place
            if not isinstance(kwargs.get("window"), Far):
                raise TwoDevicesError("stft: the window is on the CPU")
            return Far(torch.stft(*_each(_near, args), **_each(_near, kwargs)))
        return func(*args, **kwargs)


def _device(given: object) -> torch.device | None:
    return None if given is None else torch.device(given)  # type: ignore[arg-type]


def _without_gradients(mode: Any) -> None:
    mode.instead = torch.no_grad()
    mode.instead.__enter__()


@contextmanager
def far_device() -> Iterator[str]:
    """The name of the device, which is there in the block."""
    modes = torch.inference_mode  # which tensors around tensors do not know
    with (
        patch.object(modes, "__enter__", _without_gradients),
        patch.object(modes, "__exit__", lambda mode, *error: mode.instead.__exit__(*error)),
        _Operations(),
        _Functions(),
    ):
        yield NAME
