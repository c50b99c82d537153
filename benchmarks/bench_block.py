"""A block of the cache-aware FastConformer over whole recordings on a CPU: transformers' own against ours.

    python benchmarks/bench_block.py [--width 144] [--heads 4] [--output results.json]

Both have the same weights and take turns; the ratio is the median over these pairs. CPU time, so use one thread.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from transformers import NemotronAsrStreamingEncoder, NemotronAsrStreamingEncoderConfig

from espnet_bestow.encoders.block_pass import block_pass

SHAPES = ((1, 40), (4, 40), (8, 50), (40, 40), (4, 250))
"""Rows B and frames F."""


def seconds(run: Callable[[], Tensor]) -> tuple[float, float]:
    """CPU time forward and backward."""
    began = time.process_time()
    y = run()
    forward = time.process_time()
    y.sum().backward()
    return forward - began, time.process_time() - forward


def main() -> None:
    """A line per shape, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder = NemotronAsrStreamingEncoder(
        NemotronAsrStreamingEncoderConfig(
            hidden_size=args.width,
            num_hidden_layers=1,
            num_attention_heads=args.heads,
            intermediate_size=2 * args.width,
            attention_dropout=0.0,
            activation_dropout=0.0,
        )
    )
    block = encoder.layers[0]
    rows = []
    print("   B    F  transformers ms    ours ms  forward ratio  backward ratio")
    for B, T in SHAPES:
        x = torch.randn(B, T, args.width, requires_grad=True)
        positions = encoder.encode_positions(x.detach())
        sees, padding = torch.ones(B, 1, T, T, dtype=torch.bool), torch.zeros(B, T, dtype=torch.bool)
        mask = torch.zeros(B, 1, T, T)

        def theirs(x=x, sees=sees, padding=padding, positions=positions) -> Tensor:
            return block(x, attention_mask=sees, all_masked_rows=padding[:, None], position_embeddings=positions)

        def ours(x=x, mask=mask, padding=padding, positions=positions) -> Tensor:
            return block_pass(block, x, positions[0], mask, padding[..., None])

        torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-4)
        pairs = [(seconds(theirs), seconds(ours)) for _ in range(args.rounds + 2)][2:]
        forward = [1000 * median(pair[way][0] for pair in pairs) for way in (0, 1)]
        ratios = [median(a[part] / b[part] for a, b in pairs) for part in (0, 1)]
        rows.append({"B": B, "F": T, "transformers_ms": forward[0], "ours_ms": forward[1], "ratios": ratios})
        print(f"{B:4d} {T:4d} {forward[0]:15.3f} {forward[1]:10.3f} {ratios[0]:14.2f} {ratios[1]:15.2f}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
