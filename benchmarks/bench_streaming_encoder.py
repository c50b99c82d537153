"""Cache-aware streaming: ours beside transformers' and NeMo's, on the same random weights.

    python benchmarks/bench_streaming_encoder.py [--contexts 13 6 1 0] [--seconds 20] [--output bench.json]
    make bench-nemo    # the same in an environment with NeMo 3.0

FastConformer-large (17 x 512), one stream, float32. The contestants take turns chunk by chunk, so that whatever else
the machine does falls on all of them alike; seconds are CPU time, over all threads. The ratios are the result, of the
sums and of the median chunk (without the first), which a busy machine disturbs least. The difference is the largest
one between a contestant's streamed frames and its own masked full pass.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, NemotronAsrStreamingEncoder, NemotronAsrStreamingEncoderConfig
from transformers.utils import logging

from espnet_bestow.encoders.causal_subsampling import dw_striding_stages
from espnet_bestow.encoders.chunk_step import FACTOR, LEAD, ChunkStep

LEFT = 70
Step = Callable[[Tensor, bool], Tensor]  # the features (1, T, 80) of a chunk, whether it is the last -> (1, F, D)


def build() -> NemotronAsrStreamingEncoder:
    """The large model, with weights that let the signal through."""
    torch.manual_seed(0)
    config = NemotronAsrStreamingEncoderConfig(
        hidden_size=512, num_hidden_layers=17, num_attention_heads=8, intermediate_size=2048, layerdrop=0.0
    )
    encoder = NemotronAsrStreamingEncoder(config).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv1d | torch.nn.Conv2d):
            module.reset_parameters()
    return encoder


def ours(encoder: NemotronAsrStreamingEncoder, right: int) -> Step:
    step = ChunkStep(encoder, dw_striding_stages(encoder.subsampling, encoder.config.num_mel_bins), (LEFT, right))
    state = [step.open()]

    def advance(feats: Tensor, last: bool) -> Tensor:
        before = LEAD if state[0].start == 0 else 0
        size = FACTOR * step.chunk - before
        end = FACTOR * state[0].start - LEAD + before + feats.shape[1] if feats.shape[1] < size else None
        start = state[0].start
        frames, state[:] = step(feats, state, [end])
        return frames if end is None else frames[:, : step.frames_of(end) - start]

    return advance


def transformers_step(encoder: NemotronAsrStreamingEncoder, right: int) -> Step:
    caches: dict[str, Any] = {"past_key_values": DynamicCache(config=encoder.config), "padding_cache": None}

    @torch.inference_mode()
    def advance(feats: Tensor, last: bool) -> Tensor:
        out = encoder(feats, use_cache=True, num_lookahead_tokens=right, **caches)
        caches.update(past_key_values=out.past_key_values, padding_cache=out.padding_cache)
        return out.last_hidden_state

    return advance


def nemo_step(encoder: Any, right: int) -> Step:
    from benchmarks.nemo.peer import NemoStream

    return NemoStream(encoder, [LEFT, right])


@torch.inference_mode()
def full_passes(encoder: NemotronAsrStreamingEncoder, nemo: Any, feats: Tensor, right: int) -> dict[str, Tensor]:
    """Each contestant's frames of the whole recording at once; ours and transformers' are one network."""
    whole = encoder(feats, num_lookahead_tokens=right).last_hidden_state
    out = {"ours": whole, "transformers": whole}
    if nemo is not None:
        nemo.set_default_att_context_size([LEFT, right])
        out["nemo"] = nemo(audio_signal=feats.transpose(1, 2), length=torch.tensor([feats.shape[1]]))[0].transpose(1, 2)
    return out


def race(steps: dict[str, Step], feats: Tensor, right: int) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """CPU seconds of every chunk and all frames, of each contestant."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    frames: dict[str, list[Tensor]] = {name: [] for name in steps}
    bounds = [0, *range(1 + FACTOR * right, feats.shape[1], FACTOR * (right + 1)), feats.shape[1]]
    for start, stop in pairwise(bounds):
        for name, step in steps.items():
            began = time.process_time()
            frames[name].append(step(feats[:, start:stop], stop == feats.shape[1]))
            seconds[name].append(time.process_time() - began)
    return seconds, {name: torch.cat(each, 1) for name, each in frames.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[13, 6, 1, 0], help="look-aheads, in frames")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--without", nargs="*", default=[], choices=["transformers", "nemo"])
    args = parser.parse_args()
    logging.set_verbosity_error()
    encoder = build()
    contestants: dict[str, Callable[[int], Step]] = {
        "ours": lambda right: ours(encoder, right),
        "transformers": lambda right: transformers_step(encoder, right),
    }
    nemo = None
    try:
        from benchmarks.nemo.peer import nemo_encoder

        nemo = nemo_encoder(encoder, [[LEFT, right] for right in (13, 6, 1, 0)])
        contestants["nemo"] = lambda right: nemo_step(nemo, right)
    except ImportError:
        print("NeMo is not installed here: make bench-nemo")
    contestants = {name: make for name, make in contestants.items() if name not in args.without}
    results = []
    for right in args.contexts:
        # A whole number of chunks: the library's own streaming drops or refuses what is left over.
        chunks = round(args.seconds * 100 / (FACTOR * (right + 1)))
        feats = torch.randn(1, FACTOR * (right + 1) * chunks - LEAD, 80)
        seconds, frames = race({name: make(right) for name, make in contestants.items()}, feats, right)
        whole = full_passes(encoder, nemo, feats, right)
        for name, each in seconds.items():
            ratios = [theirs / own for theirs, own in zip(each[1:], seconds["ours"][1:], strict=True)]
            row = {
                "context": [LEFT, right],
                "contestant": name,
                "cpu_seconds": round(sum(each), 2),
                "chunks": len(each),
                "times_ours": round(sum(each) / sum(seconds["ours"]), 2),
                "median_chunk_ratio": round(statistics.median(ratios), 2),
                "difference": float((frames[name][:, : whole[name].shape[1]] - whole[name]).abs().max()),
            }
            results.append(row)
            print(json.dumps(row), flush=True)
    if args.output is not None:
        args.output.write_text(json.dumps({"threads": torch.get_num_threads(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
