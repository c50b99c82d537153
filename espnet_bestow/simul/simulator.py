"""A data directory streamed through a model, segment by segment, with exact times.

What SimulEval does, without its traps: a finished utterance is in the log at once, the computation-aware clock is the
exact one (SimulEval adds all earlier compute to every word), audio is read when its turn comes.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet_bestow.datadir.source import read_source
from espnet_bestow.evaluate.chunk_log import Chunk, Recording, write_chunk_log
from espnet_bestow.evaluate.instances import LOG_NAME, Instance, InstanceLog, Unit
from espnet_bestow.simul.examples import Example, by_task
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.session import Session, Word

CHUNK_LOG = "simulstream.jsonl"

Open = Callable[[str], Session]
"""A new session with a prompt."""


def segments(samples: np.ndarray, rate: int, segment_ms: int) -> Iterator[np.ndarray]:
    """samples (S,) in pieces as long as SimulEval's."""
    size = math.ceil(segment_ms / 1000 * rate)
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


@dataclass(frozen=True)
class Simulator:
    """Streams one example at a time, which is what computation-aware times need.

    Args:
        open: a new session.
        rate: of the model.
        segment_ms: audio sent at a time.
        spec: the policy of the sessions, for the log.
        unit: what has a delay.
    """

    open: Open
    rate: int
    segment_ms: int
    spec: PolicySpec
    unit: Unit = "word"

    def __call__(self, example: Example) -> Instance:
        """The log line of an example."""
        samples = read_source(example.source, self.rate, uid=example.key)
        session = self.open(example.prompt)
        words: list[Word] = []
        chunks: list[Chunk] = []
        received = 0
        try:
            for segment in segments(samples, self.rate, self.segment_ms):
                received += len(segment)
                start = time.perf_counter()
                new = session.push(segment)
                if received == len(samples):
                    new = [*new, *session.finish()]
                took = time.perf_counter() - start
                chunks.append(Chunk(received / self.rate, took, tuple(word.text for word in new)))
                words += new
        finally:
            session.close()
        return self.instance(example, chunks, words)

    def instance(self, example: Example, chunks: Sequence[Chunk], words: Sequence[Word]) -> Instance:
        """Chunks and words of an example as a log line with our own keys."""
        recording = Recording(example.source.location, tuple(chunks))
        logged = recording.instance(example.index, example.reference, unit=self.unit, join=self.unit)
        extra: dict[str, Any] = {
            "key": example.key,
            "task": example.task,
            "policy": str(self.spec),
            "words": [{"text": w.text, "seen": w.seen, "span": w.span, "tokens": w.tokens} for w in words],
            # For simulstream's log: seconds received, seconds of work, words written.
            "chunks": [(chunk.received, chunk.compute, len(chunk.written)) for chunk in chunks],
        }
        return replace(logged, extra=extra)


def recording_of(instance: Instance) -> Recording:
    """The chunks behind a log line of :class:`Simulator`."""
    texts = [word["text"] for word in instance.extra["words"]]
    chunks, done = [], 0
    for received, compute, count in instance.extra["chunks"]:
        chunks.append(Chunk(received, compute, tuple(texts[done : done + count])))
        done += count
    return Recording(str(instance.source), tuple(chunks))


def simulate(run: Callable[[Example], Instance], examples: Sequence[Example], folder: Path) -> Iterator[Instance]:
    """Streams what ``folder/<task>/instances.log`` does not hold yet; yields all instances, old ones first.

    A killed run loses nothing but the utterance it was at.
    """
    for task, members in by_task(examples).items():
        with InstanceLog(folder / task / LOG_NAME) as log:
            yield from (log.done[e.index] for e in members if e.index in log.done)
            for example in members:
                if example.index not in log.done:
                    instance = run(example)
                    log.add(instance)
                    yield instance
            done = [log.done[index] for index in sorted(log.done)]
        write_chunk_log(folder / task / CHUNK_LOG, [recording_of(instance) for instance in done])
