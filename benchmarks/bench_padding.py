"""Connector and LLM over the texts of a training batch on a CPU: every padded position computed against none.

    python benchmarks/bench_padding.py [--rounds 15] [--output results.json]

Forward and backward of the connector and of a Llama that learns, as in training: with all positions of the batch and
transformers' own pass, and as the model does it, with the real positions in one line (espnet_bestow/line.py). Both have
the same weights and take turns; the ratio is the median over these pairs. CPU time, so use one thread. Lengths of texts
are spread evenly up to the longest of the batch.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from espnet_bestow.bin.arguments import positive_int
from espnet_bestow.connectors import CrossAttentionConnector, Speech
from espnet_bestow.line import Line
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.model import BestowModel
from espnet_bestow.visibility import answer_index, offline

SHAPES = ((144, 12, 14, 27), (144, 12, 27, 27), (144, 16, 32, 128), (512, 8, 24, 64))
"""Width, rows B, the shortest and the longest text. The first is the mini recipe's, the second has no padding."""
FRAMES = 40


def model_of(width: int) -> BestowModel:
    """Three blocks and four LLM layers of one width."""
    config = LlamaConfig(
        vocab_size=350,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    with tempfile.TemporaryDirectory() as path:
        LlamaForCausalLM(config).save_pretrained(path)
        llm = CausalLM(path)
    connector = CrossAttentionConnector(width, width, width, num_blocks=3, num_heads=4, dropout=0.0)
    return BestowModel(nn.Identity(), connector, llm, nn.Identity())


def main() -> None:
    """A line per shape, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive_int, default=15)
    parser.add_argument("--threads", type=positive_int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    disable_progress_bar()
    results = []
    print("width    B    U  padding  padded ms  in a line ms  ratio")
    for width, rows, shortest, longest in SHAPES:
        model = model_of(width)
        lengths = torch.linspace(shortest, longest, rows).round().long()
        mask = torch.arange(longest) < lengths[:, None]
        ids = torch.randint(350, mask.shape)
        speech = Speech(torch.randn(rows, FRAMES, width), torch.full((rows,), FRAMES))
        visible = offline(answer_index(mask, torch.full((rows,), 4)), mask, speech.lengths)

        def logits(model=model, speech=speech, ids=ids, mask=mask, visible=visible) -> Tensor:
            return model.teacher_forced(speech, ids, mask, visible)[mask]

        def padded(model=model, logits=logits) -> Tensor:
            with patch.object(Line, "full", True), patch.object(model.llm, "_suits", False):
                return logits()

        def seconds(run: Callable[[], Tensor], model=model) -> float:
            model.zero_grad()
            began = time.process_time()
            run().logsumexp(-1).sum().backward()
            return time.process_time() - began

        torch.testing.assert_close(logits(), padded(), rtol=0, atol=1e-4)
        pairs = [(seconds(padded), seconds(logits)) for _ in range(args.rounds + 2)][2:]
        before, after = (1000 * median(pair[way] for pair in pairs) for way in (0, 1))
        row = {"width": width, "B": rows, "U": longest, "padding": 1 - mask.float().mean().item()}
        row |= {"padded_ms": before, "line_ms": after, "ratio": median(a / b for a, b in pairs)}
        results.append(row)
        print(
            f"{width:5d} {rows:4d} {longest:4d} {row['padding']:8.2f} {before:10.1f} {after:13.1f} {row['ratio']:6.2f}",
            flush=True,
        )
    if args.output:
        args.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
