"""Thirty minutes of speech through one session: does memory stay flat, does time stay linear, are the words right?

    python ../../../benchmarks/bench_long_stream.py --model exp/bestow_bidi --data_dir dump/raw/test [--minutes 30]

The recordings of one task, one after the other with pauses of 1.5 s between them, in pushes of 320 ms as fast as they
are taken, cut into segments by silence. After every minute of audio: resident memory of the process, compute since the
last line, words and segments so far. At the end the word error rate of the talk.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.datadir.source import read_source
from espnet_bestow.evaluate.quality import wer
from espnet_bestow.inference import Speech2Text
from espnet_bestow.simul.examples import Example, read_examples
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.session import SessionOptions


def resident_megabytes() -> float:
    """Memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


@dataclass
class Talk:
    """Recordings one after the other, and what has been said in those that were heard as a whole."""

    examples: list[Example]
    rate: int
    pause: float
    said: list[str] = field(default_factory=list)

    def pushes(self, size: int, seconds: float) -> Iterator[np.ndarray]:
        """So many seconds of it, or a little more: it ends with a recording and a pause."""
        rest, heard = np.zeros(0, np.float32), 0
        pause = np.zeros(round(self.pause * self.rate), np.float32)
        for example in itertools.cycle(self.examples):
            recording = read_source(example.source, self.rate, uid=example.key)
            rest, heard = np.concatenate([rest, recording, pause]), heard + len(recording) + len(pause)
            self.said.append(example.reference)
            while len(rest) >= size:
                yield rest[:size]
                rest = rest[size:]
            if heard >= seconds * self.rate:
                break
        yield rest


def measure(args: argparse.Namespace) -> None:
    """A line per minute, the word error rate, and JSON."""
    torch.set_num_threads(args.threads)
    examples = read_examples(args.data_dir, [args.task])
    s2t = Speech2Text.from_pretrained(args.model)
    context = None if args.context is None else [int(part) for part in args.context.split(",")]
    spec = PolicySpec.parse(args.policy)
    options = SessionOptions(segment_silence=args.segment_silence, max_seconds=60.0)
    talk = Talk(examples, s2t.sample_rate, args.pause)
    prompt = talk.examples[0].prompt
    session = s2t.stream(prompt, spec.name, options, s2t.listener(context=context), **dict(spec.options))
    rows, words, spent, minute = [], [], 0.0, 1
    print("minute  memory MB  compute s  words  segments")
    for chunk in talk.pushes(round(0.32 * s2t.sample_rate), 60 * args.minutes):
        started = time.process_time()
        words += session.push(chunk)
        spent += time.process_time() - started
        if session.seconds >= 60 * minute:
            row = (minute, round(resident_megabytes(), 1), round(spent, 2), len(words), session.segments_done)
            rows.append(row)
            print("{:6d} {:10.1f} {:10.2f} {:6d} {:9d}".format(*row), flush=True)
            minute, spent = minute + 1, 0.0
    words += session.finish()
    heard = "".join(word.before + word.text for word in words)
    rate = wer([heard], [" ".join(talk.said)], args.task.rpartition("_")[2]).score().value
    print(f"word error rate of the talk ({prompt!r}): {rate:.1f}")
    if args.output:
        names = ("minute", "memory_mb", "compute_s", "words", "segments")
        minutes = [dict(zip(names, row, strict=True)) for row in rows]
        args.output.write_text(json.dumps({"wer": rate, "prompt": prompt, "minutes": minutes}, indent=1) + "\n")


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data_dir", type=Path, required=True)
    parser.add_argument("--task", default="asr_en")
    parser.add_argument("--minutes", type=positive_int, default=30)
    parser.add_argument("--pause", type=float, default=1.5, help="seconds of digital silence between recordings")
    parser.add_argument("--policy", default="wait_k:k=8,step=2")
    parser.add_argument("--context", help="of a cache-aware encoder: 70,6")
    parser.add_argument("--segment_silence", type=float, default=0.8)
    parser.add_argument("--threads", type=positive_int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with fail_with_one_line():
        measure(args)


if __name__ == "__main__":
    main()
