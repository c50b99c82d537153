"""The compiled ops: loads them, and tells torch how they trace, differentiate and autocast.

Importing this module raises ImportError where they were not built, or before some of them were written.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.library import register_fake

# By its full name: what is missing is called a circular import otherwise.
import espnet_bestow.ops._C as _C  # type: ignore[import-not-found]
from espnet_bestow.ops.reference import PANEL

NAME = "bestow::staircase_forward"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# CUDA kernels are registered by the same module where it was built with them.
DEVICES = tuple(key.lower() for key in ("CPU", "CUDA") if torch._C._dispatch_has_kernel_for_dispatch_key(NAME, key))


def _traces_as[T: Callable[..., Any]](op: str) -> Callable[[T], T]:
    """What torch.compile sees of an op."""
    if not hasattr(torch.ops.bestow, op):
        raise ImportError(f"{_C.__file__} was built before {op} was written: `make setup` builds it anew")
    return register_fake(f"bestow::{op}")


cpu_isa = _C.cpu_isa
cpu_isa()  # complains now about a BESTOW_CPU_ISA that cannot run here


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Will a gradient of any of them be asked for?"""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors)


def _refuse_second_derivatives() -> None:
    """In a backward pass. torch's once_differentiable is silent where the gradient that comes in is a constant."""
    if torch.is_grad_enabled():
        raise RuntimeError("compiled ops have no second derivative (create_graph=True); BESTOW_OPS=reference has")


OLDEST_GPU = (8, 0)


@cache
def _new_enough(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= OLDEST_GPU


def takes(q: Tensor) -> bool:
    """Is there a kernel for tensors like this one?"""
    if q.device.type not in DEVICES or q.dtype not in DTYPES or q.shape[3] == 0:
        return False
    if q.device.type == "cpu":
        return True
    return q.shape[3] % 8 == 0 and q.shape[3] <= 256 and (torch.compiler.is_compiling() or _new_enough(q.device))


def staircase_attention(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, F, D)
    v: Tensor,  # (B, H_kv, F, D)
    visible: Tensor,  # (B, U) int32
    scale: float | None = None,
) -> Tensor:  # (B, H, U, D)
    """See :func:`espnet_bestow.ops.staircase_attention`."""
    if scale is None:
        scale = max(q.shape[3], 1) ** -0.5
    if torch.compiler.is_compiling():
        return torch.ops.bestow.staircase_forward(q, k, v, visible, scale)[0]
    # What torch's dispatcher would call, without its way through Python and back, which takes longer than a kernel.
    layer = _autocast if torch.is_autocast_enabled(q.device.type) else _with_gradient
    return layer(q, k, v, visible, scale)[0]


FEW_QUERIES = 8
"""Up to so many query rows of a key head read keys once, where they lie."""


def takes_weights(q: Tensor, k: Tensor) -> bool:
    """Is there a kernel for the weights of rows like these?"""
    few = q.shape[1] * q.shape[2] <= FEW_QUERIES * k.shape[1]
    return few and takes(q) and not wants_gradient(q, k)


def staircase_weights(
    q: Tensor,  # (B, H, U, D)
    k: Tensor,  # (B, H_kv, F, D)
    visible: Tensor,  # (B, U) int32
    scale: float | None = None,
) -> Tensor:  # (B, H, U, F)
    """See :func:`espnet_bestow.ops.staircase_weights`."""
    if scale is None:
        scale = max(q.shape[3], 1) ** -0.5
    return torch.ops.bestow.staircase_weights(q, k, visible, scale)


@_traces_as("staircase_weights")
def _weights_fake(q: Tensor, k: Tensor, visible: Tensor, scale: float) -> Tensor:
    return q.new_empty(*q.shape[:3], k.shape[2])


def takes_panels(weight: Tensor) -> bool:
    """Is there a kernel for this weight (N, K) in panels?"""
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.shape[0] % PANEL == 0


def panel_linear(
    x: Tensor,  # (..., K)
    panels: Tensor,  # (N / 16, K, 16)
    bias: Tensor | None,  # (N,)
) -> Tensor:  # (..., N)
    """A linear layer in float32, without gradient, at the speed at which memory gives its weights."""
    return torch.ops.bestow.panel_linear(x, panels, bias)


@_traces_as("panel_linear")
def _panel_linear_fake(x: Tensor, panels: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], PANEL * panels.shape[0])


def few_rows_linear(
    x: Tensor,  # (M, K) float32
    weight: Tensor,  # (N, K) float32, bfloat16 or int8
    scale: Tensor | None = None,  # (N) float32
    bias: Tensor | None = None,  # (N) float32
) -> Tensor:  # (M, N) float32
    """See :func:`espnet_bestow.ops.few_rows_linear`."""
    return torch.ops.bestow.few_rows_linear(x, weight, scale, bias)


@_traces_as("few_rows_linear")
def _few_rows_linear_fake(x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


def llama_token(
    x: Tensor,  # (B, D)
    weights: list[Tensor],
    caches: list[Tensor],  # per layer keys and values, (R, N, H, D) each
    rows: Tensor,  # (B,) int64
    slots: Tensor,  # (B,) int64
    turn: Tensor,  # (2, B, D) cosines and sines
    eps: float,
    scale: float,
) -> Tensor:  # (B, V)
    """The logits of one new token of each row through all layers of an LLM, in float32, without gradient."""
    return torch.ops.bestow.llama_token(x, weights, caches, rows, slots, turn, eps, scale)


def connector_token(  # noqa: PLR0913 (the op's arguments)
    text: Tensor,  # (B, D_llm)
    weights: list[Tensor],
    caches: list[Tensor],  # per block keys and values, (R, N, H, D) each; none without self-attention
    frames: Tensor,  # (R, N, E)
    visible: Tensor,  # (B,) int32
    rows: Tensor,  # (B,) int64
    slots: Tensor,  # (B,) int64
    blocks: int,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:  # (B, D_llm), (X, B, F)
    """One new token of each row through all blocks of a connector, in float32, without gradient.

    And how each block looked at the frames, in the mean of its heads.
    """
    return torch.ops.bestow.connector_token(text, weights, caches, frames, visible, rows, slots, blocks, heads, eps)


def conv_subsampling(
    x: Tensor,  # (B, T, C) float32, from the first frame on that the first output frame is made of
    past: Tensor,  # (B, n) the last inputs of all stages
    bounds: Tensor,  # (B, 3) int64: first output frame, how many; input frames of a stream that has ended, or -1
    weights: list[Tensor],  # per stage panels and bias, then those of a linear layer and of a norm
    count: int,  # stages
    block: int,  # output frames that are computed at a time, at most
    eps: float,
) -> tuple[Tensor, Tensor]:  # (B, F, D), (B, n)
    """Stages of convolutions of stride 2, GELU after each, then a linear layer and a norm; without gradient."""
    return torch.ops.bestow.conv_subsampling(x, past, bounds, weights, count, block, eps)


def subsampled_audio(
    audio: list[Tensor],  # B recordings
    bounds: Tensor,  # (B, 5) int64: first feature frame, and the one behind the last; then as in conv_subsampling
    moments: Tensor,  # (B, 3, M) float64, as in running_mvn
    past: Tensor,  # (B, n), as in conv_subsampling
    block: int,
    hop: int,
    *constants: Any,  # of log_mel from `window` on, then mean, smallest and norm_vars, then weights, count and eps
) -> tuple[Tensor, Tensor, Tensor]:  # (R, D) of all recordings, one after the other; moments and past after them
    """Log-mel, running_mvn and conv_subsampling in one call."""
    return torch.ops.bestow.subsampled_audio(audio, bounds, moments, past, block, hop, *constants)


def log_mel(
    audio: list[Tensor],  # B recordings
    bounds: Tensor,  # (B, 2) int64: the first frame of each, and the one behind the last
    hop: int,
    window: Tensor,  # (N,)
    turns: Tensor,  # (2, N) cosines and sines of 2 pi n / N
    spans: Tensor,  # (M, 2) int64: each filter's first frequency, and how many it has
    filters: Tensor,  # their weights, filter by filter
    floor: float,
) -> Tensor:  # (B, T, M), 0 behind each recording's frames
    """Log-mel frames in float32."""
    return torch.ops.bestow.log_mel(audio, bounds, hop, window, turns, spans, filters, floor)


def running_mvn(
    x: Tensor,  # (B, T, M) float32
    lengths: Tensor,  # (B,) int64
    moments: Tensor,  # (B, 3, M) float64: number, sum and sum of squares of the frames before these
    mean: Tensor,  # (M,)
    smallest: float,
    norm_vars: bool,
) -> tuple[Tensor, Tensor]:  # (B, T, M) and the moments after it
    """What :class:`espnet_bestow.encoders.RunningMVN` does, without gradient."""
    return torch.ops.bestow.running_mvn(x, lengths, moments, mean, smallest, norm_vars)


def conformer_chunk(  # noqa: PLR0913 (the op's arguments)
    x: Tensor,  # (R, D) the chunks of B streams, one after the other
    chunks: Tensor,  # (B,) int64, frames of each
    weights: list[Tensor],
    windows: list[Tensor],  # B of them, (blocks, n, 2 D) each; those of the chunk, the last ones, are written
    seen: Tensor,  # (B,) int64, how many of the n frames are attended to
    past: list[Tensor],  # B of them, (blocks, kernel - 1, D) each
    after: list[Tensor],  # the same, written
    heads: int,
    size: int,  # n, at most
    places: int,  # columns of the tables of relative positions, of windows of `size` frames
    eps: float,
    scale: float,
) -> Tensor:  # (R, D)
    """A chunk of each of some streams through all blocks of a conformer, in float32, without gradient."""
    return torch.ops.bestow.conformer_chunk(
        x, chunks, weights, windows, seen, past, after, heads, size, places, eps, scale
    )


def conformer_begin(x: Tensor, weights: list[Tensor], eps: float) -> Tensor:
    """What the first block of a conformer does to each frame of x (R, D) alone, (R, 4 D), without gradient.

    That is the frame behind the first feed-forward, and its query, key and value; of the weights it needs those. A
    frame is the same to the last bit whatever stands beside it.
    """
    return torch.ops.bestow.conformer_begin(x, weights, eps)


def conformer_whole(  # noqa: PLR0913 (the op's arguments)
    x: Tensor,  # (R, 4 D) B recordings, one after the other, that have begun
    lengths: Tensor,  # (B,) int64, frames of each
    wanted: Tensor,  # (B,) int64, how many of these come out, at least 1
    weights: list[Tensor],
    blocks: int,
    kernel: int,  # of the convolutions
    heads: int,
    size: int,  # frames of a recording, at most; the tables of relative positions have 2 size - 1
    eps: float,
    scale: float,
) -> Tensor:  # (R', D)
    """Recordings through all blocks of a conformer, each attending to all of itself, without gradient."""
    return torch.ops.bestow.conformer_whole(x, lengths, wanted, weights, blocks, kernel, heads, size, eps, scale)


def ctc_best_path(
    logp: Tensor,  # (B, F, C) float32
    lengths: Tensor,  # (B,) int64
    target: Tensor,  # (B, N) int64
    target_lengths: Tensor,  # (B,) int64
) -> Tensor:  # (B, F) int64
    """See :func:`espnet_bestow.ops.ctc_best_path`."""
    return torch.ops.bestow.ctc_best_path(logp, lengths, target, target_lengths)


def takes_frames(frames: Tensor, weight: Tensor) -> bool:
    """Is there a kernel for a convolution of such frames?"""
    return (
        frames.device.type == "cpu"
        and frames.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
    )


def depthwise(frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See :func:`espnet_bestow.ops.depthwise`."""
    return _Depthwise.apply(frames, weight, bias)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, frames: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[no-untyped-def]
        """(B, T - K + 1, C)."""
        taps = weight[:, 0].t().contiguous()  # (K, C)
        ctx.save_for_backward(frames, taps)
        return torch.ops.bestow.depthwise(frames, taps, bias)

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        """Of frames, weight and bias."""
        _refuse_second_derivatives()
        frames, taps = ctx.saved_tensors
        wanted, before = ctx.needs_input_grad, len(taps) - 1
        to_frames = to_weight = to_bias = None
        if wanted[0]:  # what each frame was part of, in the order of time that the taps do not have
            to_frames = torch.ops.bestow.depthwise(F.pad(grad, (0, 0, before, before)), taps.flip(0), None)
        if wanted[1]:
            to_weight = torch.ops.bestow.depthwise_taps(frames, grad).t()[:, None]
        if wanted[2]:
            to_bias = grad.sum((0, 1))
        return to_frames, to_weight, to_bias


@_traces_as("depthwise")
def _depthwise_fake(x: Tensor, taps: Tensor, _: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] - taps.shape[0] + 1, x.shape[2])


@_traces_as("depthwise_taps")
def _depthwise_taps_fake(x: Tensor, gradient: Tensor) -> Tensor:
    return x.new_empty(x.shape[1] - gradient.shape[1] + 1, x.shape[2])


@_traces_as("ctc_best_path")
def _ctc_best_path_fake(logp: Tensor, *_: object) -> Tensor:
    return logp.new_empty(logp.shape[:2], dtype=torch.int64)


@_traces_as("conformer_whole")
def _conformer_whole_fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(torch.library.get_ctx().new_dynamic_size(), x.shape[1] // 4)


@_traces_as("conformer_begin")
def _conformer_begin_fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(len(x), 4 * x.shape[1])


@_traces_as("conformer_chunk")
def _conformer_chunk_fake(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape)


@_traces_as("log_mel")
def _log_mel_fake(
    audio: list[Tensor], _: Tensor, __: int, window: Tensor, ___: Tensor, spans: Tensor, *____: object
) -> Tensor:
    most = torch.library.get_ctx().new_dynamic_size()
    return window.new_empty(len(audio), most, len(spans))


@_traces_as("running_mvn")
def _running_mvn_fake(x: Tensor, _: Tensor, moments: Tensor, *__: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), moments.new_empty(moments.shape)


@_traces_as("conv_subsampling")
def _conv_subsampling_fake(
    x: Tensor, past: Tensor, _: Tensor, weights: list[Tensor], *__: object
) -> tuple[Tensor, Tensor]:
    most = torch.library.get_ctx().new_dynamic_size()
    return x.new_empty(len(x), most, len(weights[-1])), past.new_empty(past.shape)


@_traces_as("subsampled_audio")
def _subsampled_audio_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    moments, past, weights = arguments[2], arguments[3], arguments[-3]
    rows = torch.library.get_ctx().new_dynamic_size()
    frames = past.new_empty(rows, len(weights[-1]))
    return frames, moments.new_empty(moments.shape), past.new_empty(past.shape)


@_traces_as("llama_token")
def _llama_token_fake(x: Tensor, weights: list[Tensor], *_: object) -> Tensor:
    return x.new_empty(len(x), weights[-2].numel() // x.shape[1])


@_traces_as("connector_token")
def _connector_token_fake(text: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    blocks = arguments[-3]
    return text.new_empty(text.shape), text.new_empty(blocks, len(text), torch.library.get_ctx().new_dynamic_size())


@_traces_as("staircase_forward")
def _forward_fake(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@_traces_as("staircase_backward")
def _backward_fake(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


_forward, _backward = torch.ops.bestow.staircase_forward.default, torch.ops.bestow.staircase_backward.default


class _Staircase(torch.autograd.Function):
    """torch.library.register_autograd makes such a function too; what it wraps around it takes longer than a kernel."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float):  # type: ignore[no-untyped-def]
        """(B, H, U, D) and (B, H, U)."""
        with torch._C._AutoDispatchBelowAutograd():
            out, lse = _forward(q, k, v, visible, scale)
        ctx.save_for_backward(q, k, v, visible, out, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, grad: Tensor | None, _: Tensor | None):  # type: ignore[no-untyped-def]
        """Of q, k and v."""
        _refuse_second_derivatives()
        if grad is None:
            return (None,) * 5
        return (*_backward(grad, *ctx.saved_tensors, ctx.scale), None, None)


def _with_gradient(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    if wants_gradient(q, k, v):
        return _Staircase.apply(q, k, v, visible, scale)
    with torch._C._AutoDispatchBelowAutograd():
        return _forward(q, k, v, visible, scale)


# torch.library.register_autocast fixes one dtype for good; this follows the dtype that autocast was entered with.
def _autocast(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    device = q.device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        return _with_gradient(q.to(dtype), k.to(dtype), v.to(dtype), visible, scale)


_library = torch.library.Library("bestow", "IMPL")
_library.impl("staircase_forward", _with_gradient, "Autograd")
for _device in DEVICES:
    _library.impl("staircase_forward", _autocast, f"Autocast{_device.upper()}")
