"""Does a token cost more when the audio is longer? Per-token time of cached decoding at fixed text length.

    python benchmarks/bench_decoding_cost.py [--output decoding_cost.json]

Random weights, batch 1, greedy steps. Speech of 5 to 30 s (80 ms frames) is given to the same model; the lengths take
turns within every round, so that whatever else the machine does falls on all of them alike. The figure is the median
time of a step, and its ratio to the 5 s one.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from espnet_bestow.connectors import CONNECTORS, Speech
from espnet_bestow.decoding import Stepper
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.model import BestowModel

SECONDS = (5, 10, 20, 30)
FRAMES_PER_SECOND = 12.5
PROMPT_TOKENS, ANSWER_TOKENS = 12, 48
SHAPES = {
    "mini recipe": {"llm": (144, 4, 4, 384), "connector": {"dim": 144, "num_heads": 4}, "encoder": 144},
    "paper's connector, small LLM": {"llm": (1024, 4, 8, 2816), "connector": {}, "encoder": 1024},
    "mini recipe, prepend": {
        "llm": (144, 4, 4, 384),
        "connector": {"name": "prepend", "dim": 144, "num_layers": 0, "subsampling": 1},
        "encoder": 144,
    },
    "mini recipe, per layer": {
        "llm": (144, 4, 4, 384),
        "connector": {"name": "per_layer", "num_heads": 4},
        "encoder": 144,
    },
    "per layer, small LLM": {"llm": (1024, 4, 8, 2816), "connector": {"name": "per_layer"}, "encoder": 1024},
    "SALM's connector, small LLM": {"llm": (1024, 4, 8, 2816), "connector": {"name": "prepend"}, "encoder": 1024},
}


def build(llm: tuple[int, int, int, int], connector: dict[str, Any], encoder: int) -> BestowModel:
    """A model of the given shape, its LLM read back from disk as always."""
    width, layers, heads, inner = llm
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=inner,
        max_position_embeddings=512,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        loaded = CausalLM(folder)
    options = {"name": "cross_attention", **connector}
    made = CONNECTORS[options.pop("name")].beside(width, layers, encoder, **options)
    return BestowModel(nn.Identity(), made, loaded, nn.Identity()).eval()


@torch.inference_mode()
def measure(model: BestowModel, width: int, rounds: int) -> dict[int, float]:
    """Median milliseconds of a step for each audio length; lengths take turns token by token."""
    times: dict[int, list[float]] = {seconds: [] for seconds in SECONDS}
    for _ in range(rounds):
        steppers = {}
        for seconds in SECONDS:
            frames = int(seconds * FRAMES_PER_SECOND)
            speech = Speech(torch.randn(1, frames, width), torch.tensor([frames]))
            steppers[seconds] = Stepper(model, speech, [[5] * PROMPT_TOKENS])
        for _ in range(ANSWER_TOKENS):
            for seconds, stepper in steppers.items():
                token = stepper.logp.argmax(-1)
                start = time.perf_counter()
                stepper.write(token)
                times[seconds].append((time.perf_counter() - start) * 1e3)
    return {seconds: statistics.median(values) for seconds, values in times.items()}


def main() -> None:
    """Prints a table and optionally writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    rows = []
    print(f"{'model':32s}" + "".join(f"{s:>7d} s" for s in SECONDS) + "   30 s / 5 s")
    for name, shape in SHAPES.items():
        measure(build(**shape), shape["encoder"], 1)
        medians = measure(build(**shape), shape["encoder"], args.rounds)
        ratio = medians[SECONDS[-1]] / medians[SECONDS[0]]
        print(f"{name:32s}" + "".join(f"{medians[s]:7.2f}ms" for s in SECONDS) + f"   {ratio:.3f}")
        rows.append({"model": name, "milliseconds_per_token": medians, "ratio_30_to_5": ratio})
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
