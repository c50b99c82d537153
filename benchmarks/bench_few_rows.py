"""float32 linear layers for a few rows: ours (in panels) beside torch's product, oneDNN's packed one, ours unpacked.

    python benchmarks/bench_few_rows.py [--rows 1 2 4 7 14 64] [--threads 1] [--output few_rows.json]

240 MB of weights are read in turn, so that none stay in the cache. CPU time; the ratio is the median over rounds in
which the contestants take turns.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bestow.encoders.few_rows import FewRowsLinear
from espnet_bestow.ops import built, few_rows_linear

WEIGHTS = 1 << 20  # of a matrix
MATRICES = 60
Product = Callable[[Tensor], object]


def contestants(inputs: int) -> dict[str, Product]:
    """Each multiplies its rows with all matrices."""
    weights = [torch.randn(WEIGHTS // inputs, inputs) for _ in range(MATRICES)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 16) for weight in weights]
    layers = [FewRowsLinear(weight, None) for weight in weights]
    return {
        "plain": lambda x: [few_rows_linear(x, each) for each in weights],
        "ours": lambda x: [layer(x) for layer in layers],
        "linear": lambda x: [F.linear(x, each) for each in weights],
        "packed": lambda x: [torch.ops.mkldnn._linear_pointwise(x, each, None, "none", [], "") for each in packed],
    }


@torch.inference_mode()
def race(products: dict[str, Product], x: Tensor, rounds: int) -> dict[str, list[float]]:
    """CPU seconds per round."""
    seconds: dict[str, list[float]] = {name: [] for name in products}
    for product in products.values():
        product(x)
    for _ in range(rounds):
        for name, product in products.items():
            began = time.process_time()
            product(x)
            seconds[name].append(time.process_time() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 7, 14, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    built()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = []
    print("| inputs x outputs, rows | GB/s | linear / ours | packed / ours | linear / unpacked |")
    print("|---|---:|---:|---:|---:|")
    for inputs in (512, 2048):
        products = contestants(inputs)
        for rows in args.rows:
            seconds = race(products, torch.randn(rows, inputs), args.rounds)
            ratio = {
                name: statistics.median(theirs / own for theirs, own in zip(each, seconds["ours"], strict=True))
                for name, each in seconds.items()
            }
            speed = 4e-9 * WEIGHTS * MATRICES / statistics.median(seconds["ours"])
            plain = statistics.median(a / b for a, b in zip(seconds["linear"], seconds["plain"], strict=True))
            results.append(
                {"inputs": inputs, "rows": rows, "gb_per_second": speed, "ratio": ratio, "linear_to_plain": plain}
            )
            shape = f"{inputs} x {WEIGHTS // inputs}, {rows}"
            print(
                f"| {shape} | {speed:.1f} | {ratio['linear']:.2f} | {ratio['packed']:.2f} | {plain:.2f} |", flush=True
            )
    if args.output is not None:
        args.output.write_text(json.dumps({"threads": args.threads, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
