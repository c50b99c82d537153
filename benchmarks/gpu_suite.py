"""Everything that wants a GPU: the fused attention against torch's own ones, correctness and speed, and graphed steps.

Needs torch only. Correctness compares with the PyTorch twin in float64; speed is the median of alternating rounds in
one process, as a ratio to each peer. Each contestant is timed twice: as a CUDA graph, which is the GPU's time, and
launched from Python, which for small shapes is the CPU's. ``--dry-run`` walks the same path on the CPU with tiny shapes
and the twin.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from espnet_bestow import ops
from espnet_bestow.connectors import CrossAttentionConnector
from espnet_bestow.connectors.graphed import GraphedStep, recorded
from espnet_bestow.ops import reference
from espnet_bestow.seats import Seats

ATTENTION_WIDTHS = (32, 64, 96, 128, 256)


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention: q (B, H, U, D), k and v (B, H, F, D)."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int

    def __str__(self) -> str:
        return f"B{self.batch} H{self.heads} {self.queries}x{self.keys} D{self.width}"


def staircase(shape: Shape, device: str) -> Tensor:
    """visible (B, U): a prompt of U / 4 rows that see nothing, then steps from a seventh to all keys; density .43."""
    prompt = shape.queries // 4
    answer = torch.linspace(shape.keys / 7, shape.keys, shape.queries - prompt, device=device).round()
    row = torch.cat([torch.zeros(prompt, device=device), answer])
    return row.int().expand(shape.batch, -1).contiguous()


def tensors(shape: Shape, dtype: torch.dtype, device: str, grad: bool = False) -> list[Tensor]:
    sizes = [(shape.queries if i == 0 else shape.keys) for i in range(3)]
    return [
        torch.randn(shape.batch, shape.heads, n, shape.width, device=device, dtype=dtype, requires_grad=grad)
        for n in sizes
    ]


class Clock:
    """Median seconds of each of several functions, by rounds in turn so that a slow moment hits all alike."""

    def __init__(self, device: str, rounds: int):
        self.device, self.rounds = device, rounds

    def once(self, run: Callable[[], object], repeats: int) -> float:
        if self.device == "cpu":
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            return (time.perf_counter() - start) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def medians(self, runs: dict[str, Callable[[], object]], graphs: bool = False) -> dict[str, float | str]:
        """Seconds per name; for a function that cannot run here, the first line of its error."""
        results: dict[str, float | str] = {}
        alive: dict[str, tuple[Callable[[], object], int]] = {}
        for name, run in runs.items():
            try:
                run()
                ready = recorded(run, torch.device(self.device)) if graphs else run
                alive[name] = ready, min(20, max(1, round(3e-3 / self.once(ready, 3))))
            except Exception as error:  # a peer that refuses a shape or is not there is a result, not a failure
                results[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"
        seconds: dict[str, list[float]] = {name: [] for name in alive}
        for _ in range(self.rounds):
            for name, (run, repeats) in alive.items():
                seconds[name].append(self.once(run, repeats))
        return results | {name: statistics.median(values) for name, values in seconds.items()}

    def both(self, runs: dict[str, Callable[[], object]]) -> dict[str, dict[str, float | str]]:
        """As graphs, and launched one by one; without a GPU both are the latter."""
        return {"seconds": self.medians(runs, graphs=True), "launched": self.medians(runs)}


def check(dtype: torch.dtype, shape: Shape, kv_heads: int, device: str) -> dict[str, float]:
    """Errors of the op and of plain PyTorch at the same precision, both against float64: {name: ours / theirs}."""
    torch.manual_seed(0)
    q, k, v = (x.detach() for x in tensors(shape, dtype, device))
    k, v = k[:, :kv_heads].contiguous(), v[:, :kv_heads].contiguous()
    visible = torch.randint(0, shape.keys + 1, (shape.batch, shape.queries), device=device, dtype=torch.int32)
    visible[:, -1] = 0 if shape.queries > 1 else shape.keys
    grad = torch.randn_like(q)

    def run(attention: Callable[..., Tensor], to: torch.dtype) -> list[Tensor]:
        inputs = [x.to(to).requires_grad_() for x in (q, k, v)]
        out = attention(*inputs, visible)
        return [out.detach(), *torch.autograd.grad(out, inputs, grad.to(to))]

    def weights(of: ModuleType, to: torch.dtype) -> Tensor:
        return of.staircase_weights(q.to(to), k.to(to), visible)

    exact = [*run(reference.staircase_attention, torch.float64), weights(reference, torch.float64)]
    with sdpa_kernel(SDPBackend.MATH):
        plain = [*run(reference.staircase_attention, dtype), weights(reference, dtype)]
    theirs = [*run(reference.staircase_attention, dtype), plain[-1]]  # by the backend that torch chooses
    ours = [*run(ops.staircase_attention, dtype), weights(ops, dtype)]
    ratios = {}
    names = ("out", "dq", "dk", "dv", "weights")
    for name, mine, other, simple, right in zip(names, ours, theirs, plain, exact, strict=True):
        errors = [(x.double() - right).abs().max().item() for x in (mine, other, simple)]
        # Half a unit in the last place of the largest value: below that no kernel can be told from another.
        unit = torch.finfo(dtype).eps * right.abs().max().item() / 2 + 1e-30
        ratios[name] = errors[0] / (max(errors[1:]) + unit) if math.isfinite(errors[0]) else math.inf
    blind = visible[:, None].expand(q.shape[:3]) == 0
    if ours[0][blind].count_nonzero() or ours[1][blind].count_nonzero():
        ratios["rows that see nothing"] = math.inf
    return ratios


def correctness(device: str, dry: bool) -> list[dict]:
    rows = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for width in (8, 32) if dry else ATTENTION_WIDTHS:
            for queries, kv_heads in ((1, 4), (5, 2)) if dry else ((1, 4), (8, 1), (33, 2), (130, 4)):
                shape = Shape(2, 4, queries, 150 if dry else 333, width)  # decoding splits either
                worst = max(check(dtype, shape, kv_heads, device).values())
                rows.append({"dtype": str(dtype), "shape": str(shape), "kv_heads": kv_heads, "error_ratio": worst})
    return rows


def peers(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, compiled_flex: bool) -> dict[str, Callable[[], Tensor]]:
    """The attentions to compare with; each takes what it needs (dense or block masks) ready made."""
    mask = (torch.arange(k.shape[2], device=q.device) < visible.clamp(min=1).unsqueeze(-1)).unsqueeze(1)

    def sdpa(backend: SDPBackend, attn_mask: Tensor | None) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)

        return run

    found = {
        "ours": lambda: ops.staircase_attention(q, k, v, visible),
        "efficient": sdpa(SDPBackend.EFFICIENT_ATTENTION, mask),
        "cudnn": sdpa(SDPBackend.CUDNN_ATTENTION, mask),
        "flash, no mask": sdpa(SDPBackend.FLASH_ATTENTION, None),
        "math": sdpa(SDPBackend.MATH, mask),
    }
    if compiled_flex:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def rule(b, h, i, j):  # type: ignore[no-untyped-def]
            return j < visible[b, i]

        blocks = create_block_mask(rule, q.shape[0], None, q.shape[2], k.shape[2], device=str(q.device))
        flex = torch.compile(flex_attention, dynamic=False)
        found["flex"] = lambda: flex(q, k, v, block_mask=blocks)
    return found


def speed(shape: Shape, dtype: torch.dtype, clock: Clock, backward: bool, flex: bool) -> dict:
    torch.manual_seed(0)
    q, k, v = tensors(shape, dtype, clock.device, grad=backward)
    visible = staircase(shape, clock.device)
    runs: dict[str, Callable[[], object]] = dict(peers(q, k, v, visible, flex))
    if backward:
        grad = torch.randn_like(q)

        def both(run: Callable[[], Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(run(), (q, k, v), grad)

        runs = {name: both(run) for name, run in runs.items()}  # type: ignore[arg-type]
        runs.pop("math")
    # No memory for scores of all heads: the plain path is only for what is small.
    elif shape.batch * shape.heads * shape.queries * shape.keys > 2**28:
        runs.pop("math")
    density = (visible.double().mean() / shape.keys).item()
    what = "forward+backward" if backward else "forward"
    return {"what": what, "shape": str(shape), "density": density, "dtype": str(dtype)} | clock.both(runs)


@torch.inference_mode()
def decode(batch: int, keys: int, width: int, clock: Clock) -> dict:
    """One query per stream, keys rotated so that they come from memory and not from the cache."""
    shape = Shape(batch, 16, 1, keys, width)
    copies = 2 if clock.device == "cpu" else max(2, min(64, int(256e6 / (4 * batch * 16 * keys * width))))
    inputs = [tensors(shape, torch.bfloat16, clock.device) for _ in range(copies)]
    visible = torch.full((batch, 1), keys, device=clock.device, dtype=torch.int32)
    mask = torch.ones(batch, 1, 1, keys, device=clock.device, dtype=torch.bool)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: [ops.staircase_attention(*x, visible) for x in inputs],
        "sdpa": lambda: [F.scaled_dot_product_attention(*x, attn_mask=mask) for x in inputs],
        "sdpa, no mask": lambda: [F.scaled_dot_product_attention(*x) for x in inputs],
    }
    per_call = {
        how: {name: value / copies if isinstance(value, float) else value for name, value in seconds.items()}
        for how, seconds in clock.both(runs).items()
    }
    return {"what": "decode", "shape": str(shape), "dtype": "torch.bfloat16"} | per_call


@torch.inference_mode()
def connector_step(batch: int, frames: int, dim: int, clock: Clock) -> dict:
    """One token of each session through the connector, bfloat16: as a graph (ours) and as single kernels (eager)."""
    torch.manual_seed(0)
    connector = CrossAttentionConnector(dim, dim // 4, dim=dim, num_heads=16).to(clock.device, torch.bfloat16).eval()
    state, seats = connector.seated(), Seats()
    places = [seats.take() for _ in range(batch)]

    def given(positions: int, seen: int) -> tuple[Tensor, Tensor, Tensor]:
        text = torch.randn(batch, positions, dim, device=clock.device, dtype=torch.bfloat16)
        mask = torch.ones(batch, positions, device=clock.device, dtype=torch.bool)
        return text, mask, torch.full((batch, positions), seen, device=clock.device, dtype=torch.int32)

    def eager(text: Tensor, mask: Tensor, visible: Tensor) -> Tensor:
        state.sit(seats.place(places, mask))
        return connector(text, mask, visible, state).embeddings

    for seat in places:
        state.hear(seat, torch.randn(frames, dim // 4, device=clock.device, dtype=torch.bfloat16))
    prompt = given(32, 0)
    eager(*prompt)
    for seat in places:
        seats.advance(seat, 32)
    text, mask, visible = given(1, frames)
    step = GraphedStep(connector, state)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: step(text, visible, seats.place(places, mask)),
        "eager": lambda: eager(text, mask, visible),
    }
    off = (step(text, visible, seats.place(places, mask)) - eager(text, mask, visible)).abs().max().item()
    seconds = clock.medians(runs)  # the graph is ours, and what it saves is launching
    shape = f"B{batch} {frames} frames dim {dim}"
    return {"what": "connector step", "shape": shape, "dtype": "torch.bfloat16", "error": off, "seconds": seconds}


def copy_bandwidth(clock: Clock) -> float:
    """Bytes read and written per second by a plain copy."""
    count = 2**20 if clock.device == "cpu" else 2**30
    source, target = (torch.empty(count, dtype=torch.uint8, device=clock.device) for _ in range(2))
    seconds = clock.medians({"copy": lambda: target.copy_(source)})["copy"]
    assert isinstance(seconds, float)
    return 2 * count / seconds


def share_of_bandwidth(row: dict, shape: Shape, bandwidth: float) -> float | None:
    """Bytes that q, k, v and out must move at least, per second, over the copy's."""
    seconds = row["seconds"].get("ours")
    if not isinstance(seconds, float):
        return None
    elements = 2 * shape.batch * shape.heads * (shape.queries + shape.keys) * shape.width
    return 2 * elements / seconds / bandwidth


def table(rows: list[dict]) -> list[str]:
    lines = []
    for row in rows:
        for how in ("seconds", "launched"):
            if how not in row:
                continue
            ours = row[how].get("ours")
            start = f"{row['what'] if how == 'seconds' else '  launched':17} {row['shape']:24}"
            if not isinstance(ours, float):
                lines.append(f"{start} ours: {ours}")
                continue
            ratios = [
                f"{name} {value / ours:.2f}x" if isinstance(value, float) else f"{name} -"
                for name, value in row[how].items()
                if name != "ours"
            ]
            share = row.get("bandwidth_share") if how == "seconds" else None
            extra = f"  [{share:.0%} of copy bandwidth]" if share else ""
            lines.append(f"{start} {ours * 1e6:8.1f} us | {', '.join(ratios)}{extra}")
    return lines


def shapes(dry: bool) -> list[Shape]:
    if dry:
        return [Shape(2, 2, 12, 40, 16)]
    sizes = ((128, 750), (128, 3750), (512, 3750))
    return [Shape(16, 16, queries, keys, 128) for queries, keys in sizes] + [Shape(16, 16, 128, 750, 64)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--only-correctness", action="store_true", help="few cases, for compute-sanitizer")
    parser.add_argument("--no-flex", action="store_true", help="leave FlexAttention out (it needs triton)")
    parser.add_argument("--out", type=Path, default=Path("gpu_suite.json"))
    args = parser.parse_args()
    device = "cpu" if args.dry_run else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("gpu_suite: no GPU here (try --dry-run)")
    result: dict = {"torch": torch.__version__, "device": torch.cuda.get_device_name() if device == "cuda" else "cpu"}
    # Under compute-sanitizer cuDNN would be reported too: it copies by other means than the tool follows.
    known = [SDPBackend.MATH, SDPBackend.EFFICIENT_ATTENTION]
    with sdpa_kernel(known) if args.only_correctness else nullcontext():
        result["correctness"] = correctness(device, args.dry_run or args.only_correctness)
    worst = max(result["correctness"], key=lambda row: row["error_ratio"])
    lines = [f"worst error against plain PyTorch's: {worst['error_ratio']:.2f}x at {worst} (must be at most 2)"]
    if not args.only_correctness:
        clock = Clock(device, rounds=3 if args.dry_run else 11)
        result["copy_bytes_per_second"] = bandwidth = copy_bandwidth(clock)
        result["speed"] = []
        for shape in shapes(args.dry_run):
            for backward in (False, True):
                row = speed(shape, torch.bfloat16, clock, backward, flex=not (args.no_flex or args.dry_run))
                if not backward:
                    row["bandwidth_share"] = share_of_bandwidth(row, shape, bandwidth)
                result["speed"].append(row)
        for batch, keys in ((1, 40),) if args.dry_run else ((1, 750), (4, 750), (16, 750), (1, 3750)):
            result["speed"].append(decode(batch, keys, 16 if args.dry_run else 128, clock))
        for batch, frames, dim in ((1, 40, 32),) if args.dry_run else ((1, 750, 2048), (4, 750, 2048)):
            result["speed"].append(connector_step(batch, frames, dim, clock))
        lines += [
            f"copy: {bandwidth / 1e9:.0f} GB/s; ratios are how many times faster ours is",
            *table(result["speed"]),
        ]
    args.out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print("\n".join(lines))
    if not worst["error_ratio"] <= 2:
        raise SystemExit("gpu_suite: the error rule does not hold")


if __name__ == "__main__":
    main()
