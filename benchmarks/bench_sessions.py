"""What does it bring to advance many streaming sessions in one batch?

    python ../../../benchmarks/bench_sessions.py --model exp/bestow_bidi [--sessions 64] [--audio data/test/wav.scp]

The same sessions are run twice: one after the other, and all in one pool, round by round. Both ways a session gets its
next chunk of audio when it has nothing left to do with what it has, and waits for no other. So the figure is compute
only: the aggregate real-time factor is time over the sum of all audio. Words must be the same both times.

Both ways have one pool, as a server would, whose memory has grown in a round that does not count. They take turns, and
the ratio is the median over these pairs: of wall time, and of CPU time for machines that do other work as well (all
threads together, so use one).
"""

import argparse
import json
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from espnet_bestow.audio import read_audio
from espnet_bestow.bin.arguments import fail_with_one_line, positive_int, positive_number
from espnet_bestow.inference import Speech2Text
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.policies import Policy, build_policy
from espnet_bestow.streaming.pool import Pool
from espnet_bestow.streaming.session import Session, SessionOptions, Word


def recordings(scp: Path | None, count: int, rate: int, seconds: float) -> list[np.ndarray]:
    """Recordings of a wav.scp, or noise; the n-th session hears the n-th, in a circle."""
    if scp is None:
        rng = np.random.default_rng(0)
        return [(0.1 * rng.standard_normal(int(seconds * rate))).astype(np.float32) for _ in range(count)]
    files = [line.split(maxsplit=1)[1].strip() for line in scp.read_text("utf-8").splitlines()]
    if not files:
        raise ValueError(f"{scp}: no recordings")
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
    """All in one pool, round by round."""
    sessions = [pool.open("transcribe the english speech", policy, options) for _ in audio]
    queues = {session: deque(chunks(samples, size)) for session, samples in zip(sessions, audio, strict=True)}
    busy: set[Session] = set()
    while busy or not all(session.ended for session in sessions):
        for session in sessions:
            if session in busy or session.ended:
                continue
            if queue := queues[session]:
                session.feed(queue.popleft())
            else:
                session.end()
        busy = set(pool.step())
    said = [session.take() for session in sessions]
    for session in sessions:
        session.close()
    return said


def timed(run: Callable[[], list[list[Word]]]) -> tuple[list[list[Word]], tuple[float, float]]:
    """What was said; seconds of wall time and of CPU time that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    said = run()
    return said, (time.perf_counter() - wall, time.process_time() - cpu)


def measure(args: argparse.Namespace) -> None:
    """Prints both real-time factors and their ratio."""
    torch.set_num_threads(args.threads)
    s2t = Speech2Text.from_pretrained(args.model, device=args.device)
    context = None if args.context is None else [int(part) for part in args.context.split(",")]
    listener = s2t.listener(args.right_context, context)
    spec = PolicySpec.parse(args.policy)
    policy, options = build_policy(spec.name, **dict(spec.options)), SessionOptions()
    audio = recordings(args.audio, args.sessions, s2t.sample_rate, args.seconds)
    total = sum(map(len, audio)) / s2t.sample_rate
    size = round(args.chunk * s2t.sample_rate)
    times: dict[str, list[tuple[float, float]]] = {"alone": [], "together": []}
    said: dict[str, list[list[Word]]] = {}
    pool = s2t.pool(listener)
    together(pool, audio, policy, options, size)  # pays for lazy initialisations, and for the pool's memory
    for _ in range(args.rounds):
        for name, way in (("alone", alone), ("together", together)):
            said[name], spent = timed(lambda way=way: way(pool, audio, policy, options, size))
            times[name].append(spent)
    texts = {name: [[word.text for word in words] for words in said[name]] for name in said}
    same = sum(a == b for a, b in zip(texts["alone"], texts["together"], strict=True))

    def figures(clock: int) -> dict[str, float]:
        a, b = ([spent[clock] for spent in times[name]] for name in ("alone", "together"))
        ratio = median(x / y for x, y in zip(a, b, strict=True))
        return {
            "rtf_alone": round(median(a) / total, 5),
            "rtf_together": round(median(b) / total, 5),
            "ratio": round(ratio, 2),
        }

    row = {
        "model": args.model,
        "policy": str(spec),
        "sessions": len(audio),
        "audio_s": round(total, 2),
        "device": args.device,
        "threads": args.threads,
        **{f"{clock}_{key}": value for n, clock in enumerate(("wall", "cpu")) for key, value in figures(n).items()},
        "words": sum(map(len, texts["alone"])),
        "sessions_with_the_same_words": same,
    }
    print(json.dumps(row))
    if args.output:
        args.output.write_text(json.dumps(row, indent=1) + "\n", "utf-8")


def main() -> None:
    """Reads the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--sessions", type=positive_int, default=64)
    parser.add_argument("--audio", type=Path, help="a wav.scp (default: noise)")
    parser.add_argument("--seconds", type=positive_number, default=6.0, help="of noise")
    parser.add_argument("--chunk", type=positive_number, default=0.32, help="seconds pushed at a time")
    parser.add_argument("--policy", default="wait_k:k=8,step=2")
    parser.add_argument("--right_context", type=int)
    parser.add_argument("--context", help="of a cache-aware encoder: 70,6")
    parser.add_argument("--rounds", type=positive_int, default=3, help="both ways take turns so often")
    parser.add_argument("--threads", type=positive_int, default=2)
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with fail_with_one_line():
        measure(args)


if __name__ == "__main__":
    main()
