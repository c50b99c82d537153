"""Makes the audio of one planned utterance. Runs in the worker processes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from espnet_bestow.corpus.acoustics import record
from espnet_bestow.corpus.plan import Utterance
from espnet_bestow.corpus.rendering import SAMPLE_RATE, Delivery, Renderer, Speech, TimedWord

_MOST_ATTEMPTS = 6


@dataclass(frozen=True)
class Recording:
    """What became of an utterance: its final speaking rate, length and word times."""

    utterance_id: str
    rate: int
    samples: int
    words: tuple[TimedWord, ...]


def _join(parts: list[Speech], pauses: tuple[float, ...]) -> Speech:
    samples, words, clock = [], [], 0
    for part, pause in zip(parts, (*pauses, 0.0), strict=True):
        start = clock / SAMPLE_RATE
        words += [TimedWord(w.word, start + w.start, start + w.end) for w in part.words]
        samples += [part.samples, np.zeros(round(pause * SAMPLE_RATE), dtype=np.float32)]
        clock += len(samples[-2]) + len(samples[-1])
    return Speech(np.concatenate(samples), tuple(words))


def _say(utterance: Utterance, delivery: Delivery, render: Renderer) -> Speech:
    parts = [render(text, delivery, utterance.seed) for text in utterance.sentences]
    return _join(parts, utterance.pauses)


def say_in_time(utterance: Utterance, render: Renderer) -> tuple[Delivery, Speech]:
    """Say the utterance, faster or slower than planned where its seconds ask for that."""
    delivery = utterance.delivery
    speech = _say(utterance, delivery, render)
    if utterance.seconds is None:
        return delivery, speech
    low, high = utterance.seconds
    for _ in range(_MOST_ATTEMPTS):
        if low <= speech.seconds <= high:
            return delivery, speech
        target = 0.93 * high if speech.seconds > high else 1.07 * low
        rate = round(delivery.rate * speech.seconds / target)
        delivery = dataclasses.replace(delivery, rate=rate)
        speech = _say(utterance, delivery, render)
    raise ValueError(
        f"{speech.seconds:.2f} s at {delivery.rate} words per minute, which is not within {low} to {high} s"
    )


def record_utterance(utterance: Utterance, render: Renderer, path: Path) -> Recording:
    """Say, distort and store one utterance as 16 kHz mono WAV at `path`.

    FLAC would be a quarter smaller, for the noise in it, and is decoded in every epoch by a core that trains.
    """
    try:
        delivery, speech = say_in_time(utterance, render)
        pcm = record(speech.samples, utterance.channel, np.random.default_rng(utterance.seed))
        soundfile.write(path, pcm, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    except (OSError, RuntimeError, ValueError) as error:
        raise RuntimeError(f"utterance {utterance.id}: {error}") from error
    return Recording(utterance.id, delivery.rate, len(pcm), speech.words)
