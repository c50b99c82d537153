"""Staircase attention on this CPU beside what PyTorch offers: a table, and the same as JSON.

    python benchmarks/bench_staircase.py --threads 2 --out staircase.json

Every round times all contestants one after the other; a ratio is the median over rounds of (best peer's time / ours).
Peers: SDPA with a dense mask, by torch's choice and by its math backend; the plain products with a masked softmax;
where every row sees everything also SDPA without a mask; with --flex, for forward passes, compiled FlexAttention at two
block sizes (it has no backward pass on CPU, and each line compiles for a minute). Visible lengths cover the full range:
a quarter of the rows is prompt and sees nothing, the others rise to all frames. With one thread the clock is this
process's CPU time, so that other work on the machine matters less.

`possible` is the ratio that the machine itself would allow: the best peer's time by that of the limit, which takes its
turn with the others. The limit is the products alone, of what rows see and without reading anything, or, for one and
four queries, reading keys and values alone (machine.py).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from espnet_bestow.ops import built, staircase_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.machine import Machine

HEADS = 16
FEW = {"one query": 1, "four queries": 4}
WHAT = ("forward", "forward + backward", "nothing to skip", *FEW)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Row:
    """One line of the table; milliseconds."""

    what: str
    dtype: str
    batch: int
    positions: int
    frames: int
    width: int
    density: float
    ours: float
    peers: dict[str, float]
    limit: float
    ratio: float
    possible: float


def staircase(batch: int, positions: int, frames: int) -> Tensor:
    """(B, U) int32 over the full range: a wait-k whose first token sees a seventh of the frames; density .43."""
    prompt = positions // 4
    answer = torch.linspace(frames / 7, frames, positions - prompt).round()
    return torch.cat([torch.zeros(prompt), answer]).int().expand(batch, -1).contiguous()


Attention = Callable[[Tensor, Tensor, Tensor], Any]


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """The products written out, masked in place; rows without any key are put to 0."""
    scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    scores.masked_fill_(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1) @ v).masked_fill(~mask.any(-1, keepdim=True), 0.0)


def math_backend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """SDPA as torch composes it from other ops."""
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def contestants(visible: Tensor, frames: int) -> dict[str, Attention]:
    """Ours and its peers, each (q, k, v) -> out."""
    mask = (torch.arange(frames) < visible.unsqueeze(-1)).unsqueeze(1)  # (B, 1, U, F)
    found = {
        "ours": lambda q, k, v: staircase_attention(q, k, v, visible),
        "sdpa mask": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask),
        "sdpa math": lambda q, k, v: math_backend(q, k, v, mask),
        "plain": lambda q, k, v: plain(q, k, v, mask),
    }
    if bool(mask.all()):
        found["sdpa"] = F.scaled_dot_product_attention
    return found


def flexible(visible: Tensor, frames: int) -> dict[str, Attention]:
    """FlexAttention at its block sizes; the block mask counts as known beforehand."""
    torch.compiler.reset()  # it gives up after eight shapes, and all others would run uncompiled
    batch, positions = visible.shape
    found: dict[str, Attention] = {}
    for block in (32, 128):
        compiled = torch.compile(flex_attention, dynamic=False)
        mask = create_block_mask(
            lambda b, _, u, f: f < visible[b, u], batch, None, positions, frames, device="cpu", BLOCK_SIZE=block
        )
        found[f"flex {block}"] = lambda q, k, v, run=compiled, mask=mask: run(q, k, v, block_mask=mask)  # type: ignore[misc]
    return found


def limit(machine: Machine, visible: Tensor, width: int, what: str, dtype: str) -> Attention:
    """What no kernel can do without, and nothing more: products of what rows see, or reading keys and values."""
    if what in FEW:
        return lambda q, k, v: machine.read(k, v)
    products = 7 if what == "forward + backward" else 2  # q k and p v; and once more q k, and four for the gradients
    operations = products * 2 * width * HEADS * float(visible.sum())
    return lambda q, k, v: machine.multiply(operations, dtype)


def learning(attention: Attention, grad: Tensor) -> Attention:
    """The same with its gradients."""
    return lambda q, k, v: torch.autograd.grad(attention(q, k, v), (q, k, v), grad)


def measure(
    what: str, dtype: str, visible: Tensor, frames: int, width: int, rounds: int, contest: dict[str, Attention]
) -> Row:
    """Times all contestants in turns.

    Few queries take what memory takes: nobody gets inputs that another has just brought into the caches.
    """
    batch = visible.shape[0]
    positions, backward = visible.shape[1], what.endswith("backward")
    copies = 4 if what in FEW else 1
    inputs = [
        [
            torch.randn(batch, HEADS, n, width, dtype=DTYPES[dtype], requires_grad=backward)
            for n in (positions, frames, frames)
        ]
        for _ in range(copies)
    ]
    times: dict[str, list[float]] = {}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for turn in range(rounds + 1):
        for place, (name, attention) in enumerate(contest.items()):
            q, k, v = inputs[(turn + place) % copies]
            start = clock()
            attention(q, k, v)
            if turn:  # the first is for warming up
                times.setdefault(name, []).append(1e3 * (clock() - start))
    ours, least = times.pop("ours"), times.pop("limit")
    ratio, possible = (
        min(statistics.median(peer / own for peer, own in zip(spent, those, strict=True)) for spent in times.values())
        for those in (ours, least)
    )
    peers = {name: statistics.median(spent) for name, spent in times.items()}
    density = float(visible.sum()) / (visible.numel() * frames)
    own, bound = statistics.median(ours), statistics.median(least)
    return Row(what, dtype, batch, positions, frames, width, density, own, peers, bound, ratio, possible)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--flex", action="store_true", help="FlexAttention too")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    native = built()
    machine = Machine(native.cpu_isa())
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    print(f"{'what':18} dtype  B    U    F   D density     ours     best peer      limit   ratio possible", flush=True)
    for what, dtype, batch, width in product(args.what, args.dtypes, args.batches, args.widths):
        visible = staircase(batch, 128, 750)
        if what == "nothing to skip":
            visible = torch.full_like(visible, 750)
        elif what in FEW:
            visible = torch.full((batch, FEW[what]), 750, dtype=torch.int32)
        contest = contestants(visible, 750)
        if what.endswith("backward"):
            grad = torch.randn(batch, HEADS, 128, width, dtype=DTYPES[dtype])
            contest = {name: learning(attention, grad) for name, attention in contest.items()}
        elif args.flex:
            contest |= flexible(visible, 750)
        contest["limit"] = limit(machine, visible, width, what, dtype)
        row = measure(what, dtype, visible, 750, width, args.rounds, contest)
        best = min(row.peers, key=row.peers.__getitem__)
        print(
            f"{what:18} {dtype} {batch:4} {row.positions:4} {row.frames:4} {width:3} {row.density:7.2f} "
            f"{row.ours:8.2f} {row.peers[best]:8.2f} {best:9} {row.limit:8.2f} {row.ratio:7.2f} {row.possible:8.2f}",
            flush=True,
        )
        rows.append(asdict(row))
    if args.out:
        about = {
            "threads": args.threads,
            "isa": native.cpu_isa(),
            "torch": torch.__version__,
            "cpu": platform.processor(),
        }
        args.out.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
