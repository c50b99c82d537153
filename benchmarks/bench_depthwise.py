"""Depthwise convolutions over time on a CPU: nn.Conv1d against the same with channels last, forward and backward.

    python benchmarks/bench_depthwise.py [--channels 288] [--kernel 15] [--output results.json]

Both take turns; the ratio is the median over these pairs. CPU time, so use one thread.
"""

import argparse
import copy
import json
import time
from pathlib import Path
from statistics import median

import torch
from torch import nn

from espnet_bestow.encoders.depthwise import quicken_depthwise

SHAPES = ((1, 29), (8, 29), (32, 29), (1, 160), (16, 160))
"""Rows B and frames T."""


def seconds(conv: nn.Module, x: torch.Tensor) -> tuple[float, float]:
    """CPU time forward and backward; x (B, T, C), frames as a conformer has them."""
    began = time.process_time()
    y = conv(x.transpose(1, 2))
    forward = time.process_time()
    y.sum().backward()
    return forward - began, time.process_time() - forward


def main() -> None:
    """A line per shape, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=288)
    parser.add_argument("--kernel", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    C, K = args.channels, args.kernel
    plain = nn.Sequential(nn.Conv1d(C, C, K, padding=K // 2, groups=C))
    quick = copy.deepcopy(plain)
    quicken_depthwise(quick)
    rows = []
    print("   B    T  conv1d ms  channels last ms  forward ratio  backward ratio")
    for B, T in SHAPES:
        x = torch.randn(B, T, C, requires_grad=True)
        pairs = [(seconds(plain, x), seconds(quick, x)) for _ in range(args.rounds + 1)][1:]
        forward = [1000 * median(pair[way][0] for pair in pairs) for way in (0, 1)]
        ratios = [median(a[part] / b[part] for a, b in pairs) for part in (0, 1)]
        rows.append({"B": B, "T": T, "conv1d_ms": forward[0], "channels_last_ms": forward[1], "ratios": ratios})
        print(f"{B:4d} {T:4d} {forward[0]:10.3f} {forward[1]:17.3f} {ratios[0]:14.2f} {ratios[1]:15.2f}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
