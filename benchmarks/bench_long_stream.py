"""Thirty minutes of speech through one session: does memory stay flat, does time stay linear?

    python benchmarks/bench_long_stream.py --model exp/bestow_bidi --audio data/test/wav.scp [--minutes 30]

Recordings of a wav.scp, one after the other with pauses of 1.5 s between them, in pushes of 320 ms as fast as they are
taken, cut into segments by silence. After every minute of audio: resident memory of the process, compute since the
last line, words and segments so far.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from espnet_bestow.audio import read_audio
from espnet_bestow.inference import Speech2Text
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.session import SessionOptions

PAUSE = 1.5


def resident_megabytes() -> float:
    """Memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def endless(files: list[str], rate: int, size: int) -> Iterator[np.ndarray]:
    """Pushes of ``size`` samples of the recordings, for ever."""
    rest = np.zeros(0, np.float32)
    pause = np.zeros(int(PAUSE * rate), np.float32)
    for file in itertools.cycle(files):
        rest = np.concatenate([rest, read_audio(file, rate), pause])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]


def main() -> None:
    """A line per minute, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--audio", type=Path, required=True, help="a wav.scp")
    parser.add_argument("--minutes", type=int, default=30)
    parser.add_argument("--policy", default="wait_k:k=8,step=2")
    parser.add_argument("--context", help="of a cache-aware encoder: 70,6")
    parser.add_argument("--segment_silence", type=float, default=0.8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    s2t = Speech2Text.from_pretrained(args.model)
    context = None if args.context is None else [int(part) for part in args.context.split(",")]
    spec = PolicySpec.parse(args.policy)
    options = SessionOptions(segment_silence=args.segment_silence, max_seconds=60.0)
    session = s2t.stream(None, spec.name, options, s2t.listener(context=context), **dict(spec.options))
    files = [line.split(maxsplit=1)[1].strip() for line in args.audio.read_text("utf-8").splitlines()]
    rows, words, spent, minute = [], 0, 0.0, 1
    print("minute  memory MB  compute s  words  segments")
    for chunk in endless(files, s2t.sample_rate, round(0.32 * s2t.sample_rate)):
        started = time.process_time()
        words += len(session.push(chunk))
        spent += time.process_time() - started
        if session.seconds >= 60 * minute:
            row = (minute, round(resident_megabytes(), 1), round(spent, 2), words, session.segments_done)
            rows.append(row)
            print("{:6d} {:10.1f} {:10.2f} {:6d} {:9d}".format(*row), flush=True)
            minute, spent = minute + 1, 0.0
            if minute > args.minutes:
                break
    if args.output:
        names = ("minute", "memory_mb", "compute_s", "words", "segments")
        args.output.write_text(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
