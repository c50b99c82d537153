"""Depthwise convolutions over time on a CPU, forward and backward: nn.Conv1d, oneDNN's with channels last, and ours.

    python benchmarks/bench_depthwise.py [--channels 144] [--kernel 9] [--output results.json]

All take turns; ratios are medians over these rounds. CPU time, so use one thread.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from espnet_bestow.ops import built, depthwise, reference

SHAPES = ((1, 29), (4, 47), (8, 29), (32, 29), (1, 160), (16, 160))
"""Rows B and frames T."""


def seconds(convolve: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """CPU time forward and backward; x (B, T + K - 1, C), frames as a conformer has them."""
    began = time.process_time()
    y = convolve(x)
    forward = time.process_time()
    y.backward(torch.ones_like(y))
    return forward - began, time.process_time() - forward


def main() -> None:
    """A line per shape, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=144)
    parser.add_argument("--kernel", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    built()
    torch.set_num_threads(args.threads)
    C, K = args.channels, args.kernel
    conv = nn.Conv1d(C, C, K, groups=C)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "conv1d": lambda x: conv(x.mT).mT,
        "channels last": lambda x: reference.depthwise(x, conv.weight, conv.bias),
        "ours": lambda x: depthwise(x, conv.weight, conv.bias),
    }
    rows = []
    print("   B    T  forward ms: " + "  ".join(ways) + "   backward ms   ratios of channels last to ours")
    for B, T in SHAPES:
        x = torch.randn(B, T + K - 1, C, requires_grad=True)
        rounds = [[seconds(way, x) for way in ways.values()] for _ in range(args.rounds + 3)][3:]
        spent = [[1e3 * median(each[way][part] for each in rounds) for way in range(3)] for part in (0, 1)]
        ratios = [median(each[1][part] / each[2][part] for each in rounds) for part in (0, 1)]
        rows.append({"B": B, "T": T, "forward_ms": spent[0], "backward_ms": spent[1], "ratios": ratios})
        table = "   ".join(" ".join(f"{value:8.3f}" for value in part) for part in spent)
        print(f"{B:4d} {T:4d}  {table}   {ratios[0]:5.1f} {ratios[1]:5.1f}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
