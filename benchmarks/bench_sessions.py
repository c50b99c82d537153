"""What does it bring to advance many streaming sessions in one batch?

    python benchmarks/bench_sessions.py --model exp/bestow_bidi [--sessions 64] [--audio data/test/wav.scp]

The same sessions are run twice: one after the other, each in a pool of its own, and all in one pool that gets a chunk
of every session's audio and then advances whoever can go on. Audio comes as fast as it is taken, so the figure is
compute only: the aggregate real-time factor is wall time over the sum of all audio. Words must be the same both times.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from espnet_bestow.audio import read_audio
from espnet_bestow.inference import Speech2Text
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.policies import Policy, build_policy
from espnet_bestow.streaming.pool import Pool
from espnet_bestow.streaming.session import SessionOptions, Word


def recordings(scp: Path | None, count: int, rate: int, seconds: float) -> list[np.ndarray]:
    """Recordings of a wav.scp, or noise; the n-th session hears the n-th, in a circle."""
    if scp is None:
        rng = np.random.default_rng(0)
        return [(0.1 * rng.standard_normal(int(seconds * rate))).astype(np.float32) for _ in range(count)]
    files = [line.split(maxsplit=1)[1].strip() for line in scp.read_text("utf-8").splitlines()]
    return [read_audio(files[n % len(files)], rate) for n in range(count)]


def chunks(samples: np.ndarray, size: int) -> list[np.ndarray]:
    """samples (S,) in pieces."""
    return [samples[begin : begin + size] for begin in range(0, len(samples), size)]


def alone(pool: Pool, audio: list[np.ndarray], policy: Policy, options: SessionOptions, size: int) -> list[list[Word]]:
    """One session after the other."""
    said = []
    for samples in audio:
        with pool.open("transcribe the english speech", policy, options) as session:
            said.append([word for chunk in chunks(samples, size) for word in session.push(chunk)] + session.finish())
    return said


def together(
    pool: Pool, audio: list[np.ndarray], policy: Policy, options: SessionOptions, size: int
) -> list[list[Word]]:
    """All in one pool, chunk by chunk."""
    sessions = [pool.open("transcribe the english speech", policy, options) for _ in audio]
    queues = [chunks(samples, size) for samples in audio]
    for turn in range(max(map(len, queues)) + 1):
        for session, queue in zip(sessions, queues, strict=True):
            if turn < len(queue):
                session.feed(queue[turn])
            elif turn == len(queue):
                session.end()
        while pool.step():
            pass
    said = [session.take() for session in sessions]
    for session in sessions:
        session.close()
    return said


def main() -> None:
    """Prints both real-time factors and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--audio", type=Path, help="a wav.scp (default: noise)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of noise")
    parser.add_argument("--chunk", type=float, default=0.32, help="seconds pushed at a time")
    parser.add_argument("--policy", default="wait_k:k=8,step=2")
    parser.add_argument("--right_context", type=int)
    parser.add_argument("--context", help="of a cache-aware encoder: 70,6")
    parser.add_argument("--rounds", type=int, default=1, help="both ways take turns; the best of each counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    s2t = Speech2Text.from_pretrained(args.model)
    context = None if args.context is None else [int(part) for part in args.context.split(",")]
    listener = s2t.listener(args.right_context, context)
    spec = PolicySpec.parse(args.policy)
    policy, options = build_policy(spec.name, **dict(spec.options)), SessionOptions()
    audio = recordings(args.audio, args.sessions, s2t.sample_rate, args.seconds)
    total = sum(map(len, audio)) / s2t.sample_rate
    size = round(args.chunk * s2t.sample_rate)
    times: dict[str, float] = {}
    said: dict[str, list[list[Word]]] = {}
    alone(s2t.pool(listener), audio[:1], policy, options, size)  # pays for lazy initialisations
    for _ in range(args.rounds):
        for name, way in (("alone", alone), ("together", together)):
            started = time.perf_counter()
            said[name] = way(s2t.pool(listener), audio, policy, options, size)
            times[name] = min(time.perf_counter() - started, times.get(name, float("inf")))
    texts = {name: [[word.text for word in words] for words in said[name]] for name in said}
    same = sum(a == b for a, b in zip(texts["alone"], texts["together"], strict=True))
    row = {
        "model": args.model,
        "policy": str(spec),
        "sessions": len(audio),
        "audio_s": round(total, 2),
        "rtf_alone": round(times["alone"] / total, 4),
        "rtf_together": round(times["together"] / total, 4),
        "ratio": round(times["alone"] / times["together"], 2),
        "words": sum(map(len, texts["alone"])),
        "sessions_with_the_same_words": same,
    }
    print(json.dumps(row))
    if args.output:
        args.output.write_text(json.dumps(row, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
