"""Live on a terminal: audio from a file or a pipe at its own speed, words as they come."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict
from typing import BinaryIO, TextIO

import numpy as np

from espnet_bestow.streaming.session import Session, Word

Chunk = tuple[np.ndarray, int]
"""Samples (S, channels) and their rate."""


def raw_chunks(pipe: BinaryIO, rate: int, channels: int, seconds: float) -> Iterator[Chunk]:
    """Raw PCM from a pipe: signed 16 bit, little endian, channels interleaved; as soon as it comes."""
    width = 2 * channels
    size = max(1, round(seconds * rate)) * width
    read = getattr(pipe, "read1", pipe.read)  # what is there, without waiting for a full piece
    rest = b""
    while data := read(size):
        data = rest + data
        whole = len(data) // width * width
        rest = data[whole:]
        yield np.frombuffer(data[:whole], "<i2").reshape(-1, channels), rate
    if rest:
        raise ValueError(f"the audio ends within a sample: {len(rest)} of {width} bytes")


def in_real_time(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Pieces not before a microphone would have given them."""
    started, seconds = time.monotonic(), 0.0
    for samples, rate in chunks:
        seconds += len(samples) / rate
        time.sleep(max(0.0, started + seconds - time.monotonic()))
        yield samples, rate


class WordWriter(ABC):
    """One form of output; its name is a value of ``--format``."""

    def __init__(self, out: TextIO):
        self.out = out

    @abstractmethod
    def add(self, word: Word) -> None:
        """The next word."""

    def close(self) -> None:
        """After the last one."""
        self.out.flush()


class TableWriter(WordWriter):
    """A line per word: begin and end of what it attended to, when it was written, the word."""

    def __init__(self, out: TextIO):
        super().__init__(out)
        self.out.write(f"{'from':>8} {'to':>8} {'written':>8}  word\n")

    def add(self, word: Word) -> None:
        self.out.write(f"{word.span[0]:8.2f} {word.span[1]:8.2f} {word.emitted:8.2f}  {word.text}\n")


class RunningTextWriter(WordWriter):
    """The text, growing word by word; a line per segment."""

    def __init__(self, out: TextIO):
        super().__init__(out)
        self._segment: int | None = None

    def add(self, word: Word) -> None:
        if self._segment not in (None, word.segment):
            self.out.write("\n" + word.text)
        else:
            self.out.write(word.before + word.text)
        self._segment = word.segment

    def close(self) -> None:
        if self._segment is not None:
            self.out.write("\n")
        super().close()


class JsonLinesWriter(WordWriter):
    """A JSON object per word."""

    def add(self, word: Word) -> None:
        json.dump(asdict(word), self.out, ensure_ascii=False)
        self.out.write("\n")


WORD_WRITERS: dict[str, type[WordWriter]] = {
    "words": TableWriter,
    "text": RunningTextWriter,
    "jsonl": JsonLinesWriter,
}


def run_live(session: Session, chunks: Iterator[Chunk], writer: WordWriter) -> None:
    """Streams all of ``chunks`` through a session; every word is flushed when it is there."""
    with session:
        try:
            for samples, rate in chunks:
                _write(writer, session.push(samples, rate))
            _write(writer, session.finish())
        finally:
            writer.close()


def _write(writer: WordWriter, words: list[Word]) -> None:
    for word in words:
        writer.add(word)
    if words:
        writer.out.flush()
