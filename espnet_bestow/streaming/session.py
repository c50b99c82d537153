"""One talk: audio goes in as it comes, whole words come out as soon as the policy lets them.

A session does no computation on the model itself: its :class:`~espnet_bestow.streaming.pool.Pool` advances all sessions
together.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from espnet_bestow.circles import CIRCLES, widest
from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.streaming.intake import Intake
from espnet_bestow.streaming.listener import Ear, Listener
from espnet_bestow.streaming.pauses import (
    Audio,
    Begin,
    Event,
    NoLongerThan,
    OneSegment,
    Segmentation,
    SilenceSegments,
)
from espnet_bestow.streaming.policies import EVERYTHING, Policy
from espnet_bestow.streaming.words import Unit, WordCutter

if TYPE_CHECKING:
    from espnet_bestow.streaming.pool import Pool


@dataclass(frozen=True)
class Word:
    """A whole word; a character in languages that write without spaces."""

    text: str
    seen: float  # seconds of audio that the model had consumed when the word was complete
    emitted: float  # seconds on a clock that also counts computation: f_n = max(a_n, f_(n-1)) + c_n
    span: tuple[float, float]  # seconds of audio that its tokens attended to
    tokens: tuple[int, ...]  # neighbours share one that wrote parts of both
    start: int = 0  # which token of its segment the first of them is
    visible: tuple[int, ...] = ()  # frames that each of them could see, from the beginning of the segment
    before: str = ""  # white space between it and the word before
    segment: int = 0  # which segment of the session it belongs to


@dataclass(frozen=True)
class SessionOptions:
    """What does not depend on the policy."""

    max_tokens: int = 200
    """Longest text of a segment; a talk that is longer goes on in a new segment."""
    suppress_end: bool = True
    """An end token before the end of the audio means READ; False: the model's end is the end of the segment."""
    circles: Sequence[int] = CIRCLES
    """How often one, two, three, ... tokens may follow themselves; beyond that READ, and after the audio the end."""
    segment_silence: float | None = None
    """Seconds without speech that end a segment; None: the whole audio is one."""
    max_seconds: float | None = None
    """Longest audio of a segment, look-ahead included; it goes on in a new one."""


class Token(NamedTuple):
    """A token that was written for good."""

    id: int
    visible: int  # frames that it could see
    frame: int | None  # frame it attended to most


@dataclass
class Segment:
    """Where the decoding of one segment stands. All fields belong to the pool."""

    ear: Ear
    offset: int  # its first sample in the whole audio
    prompt: Sequence[int]
    limit: int  # most tokens
    cutter: WordCutter
    written: list[Token] = field(default_factory=list)
    draft: list[Token] = field(default_factory=list)  # of draft policies: not written for good
    ids: list[int] = field(default_factory=list)  # of all these tokens
    drafts: list[list[int]] = field(default_factory=list)  # earlier ones, from the end of what is written
    reads: int = 0
    heard: dict[int, Tensor] = field(default_factory=dict)  # (F, D_enc) not shown yet, by how many were asked for
    target: int = 0  # frames that the policy waits for, in the present round
    shown: int = 0  # frames that are visible
    complete: bool = False  # whether these are all of an ear that has ended
    seat: int | None = None
    pending: list[int] = field(default_factory=list)  # consumed next
    blind: list[int] = field(default_factory=list)  # consumed before, without any speech
    spoke: bool = False  # whether any word was complete
    done: bool = False

    def write(self, token: Token) -> None:
        """For good."""
        self.written.append(token)
        self.ids.append(token.id)

    def sketch(self, token: Token) -> None:
        """For now."""
        self.draft.append(token)
        self.ids.append(token.id)

    def take_draft(self) -> list[Token]:
        """What was sketched, which is no longer here."""
        draft, self.draft = self.draft, []
        del self.ids[len(self.written) :]
        return draft


class Clock:
    """Seconds at which results come out of one worker: f_n = max(a_n, f_(n-1)) + c_n."""

    def __init__(self) -> None:
        self.now = 0.0

    def arrive(self, seconds: float) -> None:
        """Audio that ends at ``seconds`` is there; work on it cannot begin earlier."""
        self.now = max(self.now, seconds)

    def spend(self, seconds: float) -> None:
        """Computation on it took so long."""
        self.now += seconds


class Session:
    """From :meth:`Pool.open`.

    Args:
        pool: which advances it.
        prompt: the instruction's token ids.
        policy: when to read and when to write.
        options: limits and guards.
    """

    def __init__(self, pool: "Pool", prompt: Sequence[int], policy: Policy, options: SessionOptions):
        self._pool = pool
        self.prompt = list(prompt)
        self.policy = policy
        self.options = options
        self.widest_circle = widest(options.circles)
        self.clock = Clock()
        self.segments: deque[Segment] = deque()  # the first is decoded, the last receives audio
        self.ended = False
        self.closed = False
        self._intake = Intake(pool.listener.sample_rate)
        self.longest = _longest(options, policy, pool.listener)  # samples that a segment may have
        self._cutting = _cutting(options, policy, pool.listener, self.longest)
        self._failure: str | None = None
        # Seconds of audio that the model has consumed; never less, though a new segment may hear some of it again.
        self._seen = 0.0
        self.segments_done = 0
        self._words: list[dict[str, Any]] = []  # complete ones, waiting for the time they are taken
        self._spoke = False  # whether any word was complete

    @property
    def seconds(self) -> float:
        """Audio pushed so far."""
        return self._intake.seconds

    def push(self, samples: np.ndarray | Tensor, sample_rate: int | None = None) -> list[Word]:
        """Takes in audio, (S,) or (S, channels), and returns the words that it completed.

        Args:
            samples: float in -1 to 1 or signed integer PCM.
            sample_rate: fixed by the first push; default: the model's.
        """
        self.feed(samples, sample_rate)
        return self._run()

    def finish(self) -> list[Word]:
        """No more audio; returns the rest of the words."""
        self.end()
        return self._run()

    def feed(self, samples: np.ndarray | Tensor, sample_rate: int | None = None) -> None:
        """Takes in audio without computing anything on it: for pools of many sessions."""
        self._check_open("push")
        started = time.perf_counter()
        self._hear(self._cutting.take(self._intake.take(samples, sample_rate)))
        self.clock.arrive(self.seconds)
        self.clock.spend(time.perf_counter() - started)

    def end(self) -> None:
        """No more audio will come; computes nothing."""
        self._check_open("finish")
        self.ended = True
        self._hear(self._cutting.take(self._intake.end()))
        self._hear(self._cutting.end())

    def take(self) -> list[Word]:
        """The words completed since the last call; their ``emitted`` is now. An error if the session has failed."""
        self._check_failure()
        words = [Word(emitted=self.clock.now, **word) for word in self._words]
        self._words.clear()
        return words

    def close(self) -> None:
        """Frees the session's place in the pool; harmless when repeated."""
        if not self.closed:
            self.closed = True
            self._pool.forget(self)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise BadUtteranceError(self._failure)

    def _check_open(self, call: str) -> None:
        self._check_failure()
        if self.closed or self.ended:
            how = "close" if self.closed else "finish"
            raise ValueError(f"{call} after {how} of a session of {self.seconds:.3f} s")

    def _run(self) -> list[Word]:
        while self._pool.step():
            pass
        return self.take()

    def _hear(self, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Begin):
                self.segments.append(self._segment(event.offset))
            elif isinstance(event, Audio):
                if not self.segments[-1].done:  # else it ended early (only without suppress_end): nobody listens
                    self.segments[-1].ear.push(event.samples)
            else:
                self.segments[-1].ear.end()

    def _segment(self, offset: int) -> Segment:
        room = self._pool.max_tokens
        limit = self.options.max_tokens if room is None else min(self.options.max_tokens, room - len(self.prompt))
        ear, cutter = self._pool.listener.open(), WordCutter(self._pool.template.decode)
        return Segment(ear, offset, self.prompt, limit, cutter)

    # What the pool calls.

    @property
    def front(self) -> Segment | None:
        """The segment to decode now."""
        while self.segments and self.segments[0].done and self.segments[0].ear.ended:
            self.segments.popleft()
        # One that is done but has not ended waits for the end of its audio, which is left unheard.
        return self.segments[0] if self.segments and not self.segments[0].done else None

    def consumed(self, segment: Segment) -> float:
        """Seconds of audio that the model has needed, now that it shows what it shows of a segment."""
        listener: Listener = self._pool.listener
        heard = segment.ear.received
        if not segment.complete:
            heard = min(heard, listener.needed(segment.shown))
        self._seen = max(self._seen, min((segment.offset + heard) / listener.sample_rate, self.seconds))
        return self._seen

    def fail(self, problem: str) -> None:
        """The session's audio cannot be heard: it is closed, and says so to whoever asks it for words."""
        self._failure = f"session after {self.seconds:.2f} s of audio: {problem}"
        self.close()

    def write(self, segment: Segment, token: Token) -> None:
        """A token is written for good."""
        segment.write(token)
        if units := segment.cutter.add(token.id):
            self._emit(segment, units)

    def finish_segment(self, segment: Segment) -> None:
        """Nothing more is written in a segment; the next one's turn."""
        segment.done = True
        self._emit(segment, segment.cutter.finish())
        self.segments_done += 1

    def continue_segment(self, segment: Segment) -> None:
        """A segment is full: what follows the last attended frame becomes the beginning of a new one."""
        frames = [token.frame for token in segment.written if token.frame is not None]
        first = max(frames[-1] + 1 if frames else segment.shown, 1)  # never nothing, or it would never end
        start = min(first * self._pool.listener.hop, segment.ear.received)
        following = self._segment(segment.offset + start)
        following.ear.push(segment.ear.samples(start).numpy())
        if segment.ear.ended:
            following.ear.end()
        self.finish_segment(segment)
        self.segments[self.segments.index(segment)] = following

    def _emit(self, segment: Segment, units: list[Unit]) -> None:
        if not units:
            return
        seen = self.consumed(segment)
        for unit in units:
            ids, visible, frames = zip(*segment.written[unit.tokens], strict=True)
            # Segments are told apart by a space; nothing stands before the very first word.
            before = unit.before if segment.spoke else " " if self._spoke else ""
            self._spoke = segment.spoke = True
            span = self._attended(segment, frames, seen)
            word = {"text": unit.text, "seen": seen, "span": span, "tokens": ids, "visible": visible}
            self._words.append(word | {"start": unit.tokens.start, "before": before, "segment": self.segments_done})

    def _attended(self, segment: Segment, frames: Sequence[int | None], seen: float) -> tuple[float, float]:
        """The seconds of audio between the first and the last of these frames."""
        known = [frame for frame in frames if frame is not None]
        if not known:
            return seen, seen
        rate, hop = self._pool.listener.sample_rate, self._pool.listener.hop
        first, last = (segment.offset + at * hop for at in (min(known), max(known) + 1))
        return min(first / rate, seen), min(last / rate, seen)


def _longest(options: SessionOptions, policy: Policy, listener: Listener) -> int | None:
    """Samples of the longest segment, of which the first token needs no more."""
    most, rate = options.max_seconds, listener.sample_rate
    if most is None:
        return None
    if most <= 0:
        raise ValueError(f"max_seconds={most} must be more than 0")
    longest, first = max(1, round(most * rate)), listener.chunks.whole(policy.frames(0, 0))
    if first < EVERYTHING and longest < listener.needed(first):
        needed = f"{listener.needed(first) / rate:.2f} s"
        raise ValueError(f"max_seconds={most} holds less than the {needed} that come before the first token")
    return longest


def _cutting(options: SessionOptions, policy: Policy, listener: Listener, longest: int | None) -> Segmentation:
    """How a session's audio becomes segments, as far as the audio alone decides it."""
    silence = options.segment_silence
    segments = OneSegment() if silence is None else SilenceSegments(silence, listener.sample_rate)
    if longest is None or listener.chunks.whole(policy.frames(0, 0)) < EVERYTHING:
        return segments
    return NoLongerThan(segments, longest)
