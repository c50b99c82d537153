"""How long after it was spoken is a word written? Emission delays against word onsets from a CTM file.

For transcription only: a written word is matched with the spoken word it stands for, and only words that are right are
measured. What was not matched is counted beside the delays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
from numpy.typing import NDArray

from espnet_bestow.evaluate.latency import Times


@dataclass(frozen=True)
class SpokenWord:
    """A word of a recording and when it is spoken, in milliseconds."""

    text: str
    onset: float
    end: float


@dataclass(frozen=True)
class EmissionDelays:
    """Delays of all words that were written right.

    Attributes:
        milliseconds: one per matched word, from its onset to its emission.
        spoken: how many words were spoken.
    """

    milliseconds: NDArray
    spoken: int

    def percentile(self, share: float) -> float | None:
        """Delay that `share` percent of the matched words stay below; None where no word matched."""
        return float(np.percentile(self.milliseconds, share)) if len(self.milliseconds) else None


def read_ctm(path: Path) -> dict[str, list[SpokenWord]]:
    """Reads `<utterance> <channel> <start s> <duration s> <word>` lines; words in the order of their onsets."""
    words: dict[str, list[SpokenWord]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip() or line.startswith(";;"):
            continue
        try:
            key, _, start, duration, word, *_ = line.split()
            onset, length = float(start) * 1000, float(duration) * 1000
        except ValueError as error:
            raise ValueError(
                f"{path}:{number}: expected '<id> <channel> <start> <duration> <word>': {line!r}"
            ) from error
        if not (onset >= 0 and length >= 0):
            raise ValueError(f"{path}:{number}: times must be at least 0, got {start} and {duration}")
        words.setdefault(key, []).append(SpokenWord(word, onset, onset + length))
    if not words:
        raise ValueError(f"{path}: the file holds no word")
    return {key: sorted(members, key=lambda word: word.onset) for key, members in words.items()}


def _plain(word: str) -> str:
    """Case and punctuation do not make another word; a word of punctuation only stays what it is."""
    return "".join(c for c in word.casefold() if c.isalnum()) or word


def matched_words(written: Sequence[str], spoken: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs (position written, position spoken) of equal words in a cheapest alignment."""
    if not written or not spoken:
        return []
    out = jiwer.process_words(" ".join(map(_plain, spoken)), " ".join(map(_plain, written)))
    return [
        (part.hyp_start_idx + i, part.ref_start_idx + i)
        for part in out.alignments[0]
        if part.type == "equal"
        for i in range(part.ref_end_idx - part.ref_start_idx)
    ]


def word_emission_delays(written: Sequence[str], emitted: Times, spoken: Sequence[SpokenWord]) -> NDArray:
    """Milliseconds from onset to emission of each matched word of one utterance.

    Args:
        written: words of the answer.
        emitted: milliseconds at which each was written; delays or times of a real clock.
        spoken: words of the recording.
    """
    if len(written) != len(emitted):
        raise ValueError(f"{len(written)} words were written but there are {len(emitted)} times")
    pairs = matched_words(written, [word.text for word in spoken])
    return np.array([emitted[i] - spoken[j].onset for i, j in pairs], dtype=np.float64)


def emission_delays(utterances: Sequence[tuple[Sequence[str], Times, Sequence[SpokenWord]]]) -> EmissionDelays:
    """Delays of all words of a test set, each utterance as in `word_emission_delays`."""
    delays = [word_emission_delays(*utterance) for utterance in utterances]
    return EmissionDelays(
        np.concatenate(delays) if delays else np.empty(0), sum(len(spoken) for _, _, spoken in utterances)
    )
