"""A data directory streamed through a model, segment by segment, with exact times.

What SimulEval does, without its traps: a finished utterance is in the log at once, the computation-aware clock is the
exact one (SimulEval adds all earlier compute to every word), audio is read when its turn comes.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from espnet_bestow.datadir.source import read_source
from espnet_bestow.evaluate.chunk_log import Chunk, Recording, write_chunk_log
from espnet_bestow.evaluate.instances import LOG_NAME, Instance, InstanceLog, Unit
from espnet_bestow.evaluate.latency import paper_delays
from espnet_bestow.evaluate.latency_scoring import PAPER_KEY
from espnet_bestow.simul.chunks import CHUNK_LOG, recordings_of
from espnet_bestow.simul.examples import Example, by_task
from espnet_bestow.simul.loading import Streamer
from espnet_bestow.streaming.session import Session, Word


@dataclass(frozen=True)
class Sending:
    """How audio is sent and words are counted."""

    segment_ms: int = 320
    """Audio sent at a time."""
    unit: Unit = "word"
    """What has a delay."""


@dataclass
class Stream:
    """One example on its way through a session."""

    example: Example
    session: Session
    segments: list[np.ndarray]
    rate: int
    received: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether all audio was sent."""
        return len(self.chunks) == len(self.segments)

    def next_segment(self) -> tuple[np.ndarray, bool]:
        """The samples to send now, and whether they are the last ones."""
        samples = self.segments[len(self.chunks)]
        self.received += len(samples)
        return samples, len(self.chunks) == len(self.segments) - 1

    def send(self) -> None:
        """Gives the session the next segment, without work on it."""
        samples, last = self.next_segment()
        self.session.feed(samples)
        if last:
            self.session.end()

    def heard(self, words: Sequence[Word], seconds: float) -> None:
        """What came of that segment, and what it took."""
        self.chunks.append(Chunk(self.received / self.rate, seconds, tuple(word.text for word in words)))
        self.words += words

    def instance(self, streamer: Streamer, unit: Unit) -> Instance:
        """The log line, with our own keys."""
        example, recording = self.example, Recording(self.example.source.location, tuple(self.chunks))
        logged = recording.instance(example.index, example.reference, unit=unit, join=unit)
        extra: dict[str, Any] = {
            "key": example.key,
            "task": example.task,
            "policy": str(streamer.spec),
            "words": [{"text": w.text, "seen": w.seen, "span": w.span, "tokens": w.tokens} for w in self.words],
            # For simulstream's log: seconds received, seconds of work, words written.
            "chunks": [(chunk.received, chunk.compute, len(chunk.written)) for chunk in self.chunks],
        }
        if (schedule := streamer.paper_schedule) is not None:
            extra[PAPER_KEY] = paper_delays(token_counts(self.words), logged.source_length, *schedule)
        return replace(logged, extra=extra)


def token_counts(words: Sequence[Word]) -> list[int]:
    """Tokens from the beginning of each word to that of the next one; none where one token began both."""
    return [
        len(word.tokens) if following is None or following.segment != word.segment else following.start - word.start
        for word, following in zip(words, [*words[1:], None], strict=True)
    ]


def open_stream(example: Example, streamer: Streamer, sending: Sending) -> Stream:
    """Reads the audio and cuts it into segments as long as SimulEval's."""
    samples = read_source(example.source, streamer.rate, uid=example.key)
    size = math.ceil(sending.segment_ms / 1000 * streamer.rate)
    segments = [samples[start : start + size] for start in range(0, len(samples), size)]
    return Stream(example, streamer.open(example.prompt), segments, streamer.rate)


class Simulator(Protocol):
    """How examples are streamed."""

    def __call__(self, examples: Sequence[Example]) -> Iterator[Instance]:
        """Yields every example's log line as soon as it is complete."""
        ...


@dataclass(frozen=True)
class OneByOne:
    """One session at a time, its computation on the clock."""

    streamer: Streamer
    sending: Sending

    def __call__(self, examples: Sequence[Example]) -> Iterator[Instance]:
        """See :class:`Simulator`."""
        for example in examples:
            stream = open_stream(example, self.streamer, self.sending)
            with stream.session as session:
                while not stream.ended:
                    segment, last = stream.next_segment()
                    start = time.perf_counter()
                    words = session.push(segment)
                    if last:
                        words += session.finish()
                    stream.heard(words, time.perf_counter() - start)
            yield stream.instance(self.streamer, self.sending.unit)


@dataclass(frozen=True)
class Together:
    """Many sessions in one pool: the same words and delays sooner, but no computation-aware times."""

    streamer: Streamer
    sending: Sending
    sessions: int

    def __call__(self, examples: Sequence[Example]) -> Iterator[Instance]:
        """See :class:`Simulator`."""
        waiting = list(examples)[::-1]
        active: list[Stream] = []
        while waiting or active:
            while waiting and len(active) < self.sessions:
                active.append(open_stream(waiting.pop(), self.streamer, self.sending))
                active[-1].send()
            busy = set(map(id, self.streamer.pool.step()))
            # Who has made of the audio all that can be made of it gets more; nobody waits for the slowest.
            for stream in [stream for stream in active if id(stream.session) not in busy]:
                stream.heard(stream.session.take(), 0.0)
                if not stream.ended:
                    stream.send()
                    continue
                stream.session.close()
                active.remove(stream)
                # Rows of a batch pay for each other: nobody's own time is known.
                yield replace(stream.instance(self.streamer, self.sending.unit), clock=(), compute=None)


def simulate(simulator: Simulator, examples: Sequence[Example], folder: Path) -> Iterator[Instance]:
    """Streams what ``folder/<task>/instances.log`` does not hold yet; yields all instances, old ones first.

    A killed run loses nothing but what it was at.

    Raises:
        ValueError: The log holds other rows under the same numbers.
    """
    for task, members in by_task(examples).items():
        with InstanceLog(folder / task / LOG_NAME) as log:
            yield from [_same_row(log, e) for e in members if e.index in log.done]
            for instance in simulator([e for e in members if e.index not in log.done]):
                log.add(instance)
                yield instance
            done = [log.done[index] for index in sorted(log.done)]
        write_chunk_log(folder / task / CHUNK_LOG, recordings_of(done))


def _same_row(log: InstanceLog, example: Example) -> Instance:
    """What was logged of an example."""
    logged = log.done[example.index]
    found = str(logged.extra.get("key")), logged.source, logged.reference
    if found != (example.key, example.source.location, example.reference):
        raise ValueError(
            f"{log.path}: index {example.index} is {found[0]!r} ({logged.source}), not {example.key!r} "
            f"({example.source.location}) or not with its reference: the log of other data; name another output_dir"
        )
    return logged
