"""Does a model write words into silence?

    python ../../../benchmarks/bench_silence.py --model exp/bestow --data_dir dump/raw/test

The recordings of one task, decoded whole with digital silence before and after them: word error rates.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.datadir.source import read_source
from espnet_bestow.evaluate.quality import wer
from espnet_bestow.inference import Speech2Text
from espnet_bestow.simul.examples import evenly, read_examples

AROUND = ((0.0, 0.0), (0.2, 0.8), (0.0, 1.0), (0.5, 0.0), (1.0, 1.0))
"""Seconds before and after."""


def measure(args: argparse.Namespace) -> None:
    """A line per pair, and JSON."""
    torch.set_num_threads(args.threads)
    examples = evenly(read_examples(args.data_dir, [args.task]), args.max_rows)
    s2t = Speech2Text.from_pretrained(args.model)
    recordings = [read_source(each.source, s2t.sample_rate, uid=each.key) for each in examples]
    rows = []
    print("before s  after s    WER")
    for before, after in AROUND:
        edges = round(before * s2t.sample_rate), round(after * s2t.sample_rate)
        texts: list[str] = []
        for start in range(0, len(examples), args.batch_size):
            part = slice(start, start + args.batch_size)
            audio = [np.pad(recording, edges) for recording in recordings[part]]
            texts += [result.text for result in s2t.batch(audio, [each.prompt for each in examples[part]])]
        rate = wer(texts, [each.reference for each in examples], args.task.rpartition("_")[2]).score().value
        rows.append({"before_s": before, "after_s": after, "wer": round(rate, 2), "n": len(examples)})
        print(f"{before:8.1f} {after:8.1f} {rate:6.1f}", flush=True)
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--task", default="asr_en")
    parser.add_argument("--max_rows", type=positive_int, default=60)
    parser.add_argument("--batch_size", type=positive_int, default=16)
    parser.add_argument("--threads", type=positive_int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with fail_with_one_line():
        measure(args)


if __name__ == "__main__":
    main()
