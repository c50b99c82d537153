"""A streaming session's token in one native call beside the same layers one by one, on this CPU.

    OMP_NUM_THREADS=1 python benchmarks/bench_token.py [--width 144] [--layers 4] [--sessions 1 8 32]

A connector of two blocks and a Llama, both of the same width with random weights, 40 frames, 16 earlier tokens. The
contestants take turns; milliseconds are medians, the ratio is the median over rounds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from espnet_bestow.connectors import CrossAttentionConnector
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.ops import built
from espnet_bestow.seats import Seats

FRAMES, HISTORY, ENCODER = 40, 16, 144
Step = Callable[[], object]


def llm_of(width: int, layers: int) -> CausalLM:
    """A random Llama with four heads."""
    config = LlamaConfig(
        vocab_size=350,
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
    )
    with TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        return CausalLM(folder).eval()


def connector_step(connector: CrossAttentionConnector, width: int, sessions: int, one_call: bool) -> Step:
    """One token of each session behind some text, again and again."""
    state, seats = connector.seated(), Seats()
    if not one_call:
        state.token = None
    taken = [seats.take() for _ in range(sessions)]
    for seat in taken:
        state.hear(seat, torch.randn(FRAMES, ENCODER))
        seats.advance(seat, HISTORY)
    text, mask = torch.randn(sessions, 1, width), torch.ones(sessions, 1, dtype=torch.bool)
    visible = torch.full((sessions, 1), FRAMES, dtype=torch.int32)

    def step() -> object:
        state.sit(seats.place(taken, mask))
        return connector(text, mask, visible, state)

    return step


def llm_step(llm: CausalLM, sessions: int, way: str) -> Step:
    """The same for the LLM."""
    state, seats = llm.seated(), Seats()
    if way != "one call":
        state.token = None
    taken = [seats.take() for _ in range(sessions)]
    history = torch.ones(sessions, HISTORY, dtype=torch.bool)
    state.sit(seats.place(taken, history))
    llm(torch.randn(sessions, HISTORY, llm.width), history, state, keep=1)
    for seat in taken:
        seats.advance(seat, HISTORY)
    x, mask = torch.randn(sessions, 1, llm.width), torch.ones(sessions, 1, dtype=torch.bool)

    def step() -> object:
        llm._short_step = way != "transformers"
        state.sit(seats.place(taken, mask))
        return llm(x, mask, state, keep=1)

    return step


@torch.no_grad()
def race(steps: dict[str, Step], rounds: int, repeats: int = 20) -> dict[str, list[float]]:
    """Milliseconds of a step, per round."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):  # the first is for warming up
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(repeats):
                step()
            times[name].append((time.perf_counter() - began) / repeats * 1e3)
    return {name: each[1:] for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    built()
    torch.manual_seed(0)
    connector = CrossAttentionConnector(args.width, ENCODER, args.width, num_heads=4, dropout=0.0).eval()
    llm, rows = llm_of(args.width, args.layers), []
    print("| part | sessions | way | ms | times slower than one call |\n|---|---:|---|---:|---:|")
    for sessions in args.sessions:
        ways = "transformers", "layer by layer", "one call"
        parts = {
            "connector": {way: connector_step(connector, args.width, sessions, way == "one call") for way in ways[1:]},
            "LLM": {way: llm_step(llm, sessions, way) for way in ways},
        }
        for part, steps in parts.items():
            times = race(steps, args.rounds)
            for way, each in times.items():
                ratio = statistics.median(a / b for a, b in zip(each, times["one call"], strict=True))
                rows.append(
                    {"part": part, "sessions": sessions, "way": way, "ms": statistics.median(each), "ratio": ratio}
                )
                print(f"| {part} | {sessions} | {way} | {rows[-1]['ms']:.2f} | {ratio:.1f} |", flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
