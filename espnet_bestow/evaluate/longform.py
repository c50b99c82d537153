"""Latency of unsegmented recordings: align the answer to the reference's segments, then measure each segment.

The alignment is that of SoftSegmenter ("Better Late Than Never", arXiv 2509.17349): words of answer and reference are
matched by how many characters they share, so that paraphrases and errors still find their segment. Delays are then
counted from the beginning of the segment a word fell into, and LongYAAL is the mean of YAAL over segments, where words
count up to the end of the recording. The numbers are OmniSTEval 0.1.10's.

Letters: N reference words, M written words of one recording. All times are milliseconds.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import yaml
from numpy.typing import NDArray

from espnet_bestow.evaluate.instances import Instance, Unit, units_of
from espnet_bestow.evaluate.latency import Metric, Times, al, ap, dal, laal, yaal

Splitter = Callable[[str], Sequence[str]]  # a word -> its tokens, e.g. "Mann." -> "Mann", "."

PUNCTUATION = frozenset(".!?,;:-()。！？，；：—（）ー")
CLOCKS = {"": "delays", "_ca": "clock"}
_MATCH, _SKIP_REFERENCE, _SKIP_WRITTEN = range(3)


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording with its reference."""

    offset: float
    duration: float
    reference: str

    @property
    def end(self) -> float:
        """Where it ends in the recording."""
        return self.offset + self.duration


@dataclass(frozen=True)
class AlignedSegment:
    """A segment with the units that fell into it.

    Attributes:
        segment: where it is and what should have been written.
        units: what was written.
        delays: of each unit since the beginning of the segment; negative where the answer ran ahead.
        clock: the same on the real clock; empty where nobody measured it.
        recording_end: since the beginning of the segment.
    """

    segment: Segment
    units: tuple[str, ...]
    delays: tuple[float, ...]
    clock: tuple[float, ...]
    recording_end: float


def whole_words(word: str) -> Sequence[str]:
    """A word is one token: no language needed."""
    return (word,)


@dataclass(frozen=True)
class _Similarity:
    """How alike the tokens of two texts are, stored once per pair of different tokens."""

    alike: NDArray  # between different tokens
    reference: NDArray  # (N,) row of each reference token
    written: NDArray  # (M,) column of each written token

    def row(self, i: int) -> NDArray:
        """Of reference token i to all written ones, (M,)."""
        return self.alike[self.reference[i], self.written]

    def of(self, i: int, j: int) -> float:
        """Of reference token i to written token j."""
        return float(self.alike[self.reference[i], self.written[j]])


def _characters(tokens: Sequence[str], alphabet: Mapping[str, int]) -> NDArray:
    """Which characters a token has: (tokens, alphabet) of 0 and 1."""
    has = np.zeros((len(tokens), len(alphabet)))
    for i, token in enumerate(tokens):
        has[i, [alphabet[c] for c in token]] = 1
    return has


def _similarity(reference: Sequence[str], written: Sequence[str], unit: Unit) -> _Similarity:
    """Shared characters over all characters of both tokens; characters alone are alike or not.

    Punctuation and words are never alike (-inf).
    """
    rows, columns = ({token: i for i, token in enumerate(dict.fromkeys(side))} for side in (reference, written))
    alphabet = {c: i for i, c in enumerate(sorted(set("".join([*rows, *columns]))))}
    ours, theirs = _characters(list(rows), alphabet), _characters(list(columns), alphabet)
    shared = ours @ theirs.T
    alike = shared / np.maximum(1, ours.sum(1)[:, None] + theirs.sum(1)[None] - shared)
    if unit == "char":
        alike = np.floor(alike)
    is_mark = [np.array([token in PUNCTUATION for token in side], dtype=bool) for side in (rows, columns)]
    alike[is_mark[0][:, None] != is_mark[1][None]] = -np.inf
    places = [np.array([of[t] for t in side], dtype=np.int64) for of, side in ((rows, reference), (columns, written))]
    return _Similarity(alike, places[0], places[1])


Pair = tuple[int | None, int | None]  # positions of a reference token and a written one; None: nothing there


def _align(similarity: _Similarity) -> list[Pair]:
    """The monotone alignment of greatest similarity.

    Gaps cost nothing. Between equal alignments a match is preferred, then a gap in what was written.
    """
    best, moves = np.zeros(len(similarity.written) + 1), []
    for n in range(len(similarity.reference)):
        match, skip = best[:-1] + similarity.row(n), best[1:]
        best = np.maximum.accumulate(np.concatenate([[0.0], np.maximum(match, skip)]))
        before = best[:-1]  # the same reference token, one written token less
        move = np.where(skip >= before, _SKIP_REFERENCE, _SKIP_WRITTEN)
        moves.append(np.where((match >= skip) & (match >= before), _MATCH, move).astype(np.int8))
    pairs: list[Pair] = []
    i, j = len(similarity.reference), len(similarity.written)
    while i or j:
        way = _SKIP_WRITTEN if not i else _SKIP_REFERENCE if not j else int(moves[i - 1][j - 1])
        i, j = i - (way != _SKIP_WRITTEN), j - (way != _SKIP_REFERENCE)
        pairs.append((None if way == _SKIP_WRITTEN else i, None if way == _SKIP_REFERENCE else j))
    return pairs[::-1]


def _homes(pairs: Sequence[Pair], similarity: _Similarity) -> dict[int, int]:
    """A reference token for every written one: its match, or of the two around its gap the more alike.

    The first token of a gap that leans forward takes those after it along, so that order is kept. A token before the
    first match that cannot be compared with what follows (a punctuation mark and a word) has no home.
    """
    ahead_of: list[int | None] = [None] * (len(pairs) + 1)
    for place in range(len(pairs) - 1, -1, -1):
        i = pairs[place][0]
        ahead_of[place] = ahead_of[place + 1] if i is None else i
    homes: dict[int, int] = {}
    last: int | None = None
    leaning = False
    for place, (i, j) in enumerate(pairs):
        if i is not None:
            last, leaning = i, False
        elif j is not None and not leaning:
            ahead = ahead_of[place]
            backward = -np.inf if last is None else similarity.of(last, j)
            if ahead is not None and similarity.of(ahead, j) > backward:
                last, leaning = ahead, True
        if j is not None and last is not None:
            homes[j] = last
    return homes


def _tokens(words: Sequence[str], split: Splitter) -> tuple[list[str], list[int]]:
    """Normalized tokens of words, and the word that each belongs to."""
    tokens, owners = [], []
    for n, word in enumerate(words):
        for token in split(unicodedata.normalize("NFKC", word).lower()):
            tokens.append(token)
            owners.append(n)
    return tokens, owners


def align_recording(
    instance: Instance, segments: Sequence[Segment], unit: Unit = "word", split: Splitter = whole_words
) -> list[AlignedSegment]:
    """Cuts the answer to a long recording into the segments of its reference.

    Args:
        instance: the whole recording as it was decoded.
        segments: of the recording, in order.
        unit: what delays belong to.
        split: tokens of a word; its first token decides where the word goes. A tokenizer that sets punctuation apart
            makes marks match marks.
    """
    units = units_of(instance.prediction, unit)
    homes_of_words = [n for n, segment in enumerate(segments) for _ in units_of(segment.reference, unit)]
    if not homes_of_words:
        raise ValueError(f"instance {instance.index}: none of {len(segments)} segments has a reference text")
    reference, owners = _tokens([w for s in segments for w in units_of(s.reference, unit)], split)
    written, writers = _tokens(units, split)
    similarity = _similarity(reference, written, unit)
    members: list[list[int]] = [[] for _ in segments]
    for j, i in _homes(_align(similarity), similarity).items():
        if not j or writers[j - 1] != writers[j]:  # the first token of its word
            members[homes_of_words[owners[i]]].append(writers[j])
    end = max(segment.end for segment in segments)
    return [
        AlignedSegment(
            segment,
            tuple(units[n] for n in chosen),
            tuple(instance.delays[n] - segment.offset for n in chosen),
            tuple(instance.clock[n] - segment.offset for n in chosen if instance.clock),
            end - segment.offset,
        )
        for segment, chosen in zip(segments, members, strict=True)
    ]


def _long_yaal(times: Times, aligned: AlignedSegment, reference_length: int) -> float | None:
    return yaal(times, aligned.segment.duration, reference_length, end=aligned.recording_end)


def _of_duration(metric: Metric) -> Callable[[Times, AlignedSegment, int], float | None]:
    return lambda times, aligned, reference_length: metric(times, aligned.segment.duration, reference_length)


# LongLAAL is what others call StreamLAAL, up to the aligner.
LONG_METRICS: dict[str, Callable[[Times, AlignedSegment, int], float | None]] = {
    "long_yaal": _long_yaal,
    "long_laal": _of_duration(laal),
    "long_al": _of_duration(al),
    "long_ap": _of_duration(ap),
    "long_dal": _of_duration(dal),
}


@dataclass(frozen=True)
class LongReport:
    """Means over segments.

    Attributes:
        segments: how many there are.
        empty: how many got no unit and stand in no mean.
        unplaced: units that found no segment.
        values: by metric, `_ca` behind those of the real clock.
    """

    segments: int
    empty: int
    unplaced: int
    values: dict[str, float]


def score_longform(
    instances: Sequence[Instance],
    segments: Mapping[str, Sequence[Segment]],
    unit: Unit = "word",
    split: Splitter = whole_words,
) -> LongReport:
    """LongYAAL and its relatives over whole recordings.

    Args:
        instances: one per recording.
        segments: of each recording, by `Instance.recording`.
        unit: what delays belong to.
        split: see `align_recording`.
    """
    if missing := [i for i in instances if i.recording not in segments]:
        raise ValueError(f"instance {missing[0].index}: recording {missing[0].recording!r} has no segments")
    aligned = [part for i in instances for part in align_recording(i, segments[i.recording], unit, split)]
    values: dict[str, float] = {}
    for suffix, attribute in CLOCKS.items():
        for name, metric in LONG_METRICS.items():
            scored = [
                metric(times, part, max(1, len(units_of(part.segment.reference, unit))))
                for part in aligned
                if (times := getattr(part, attribute))
            ]
            if known := [value for value in scored if value is not None]:
                values[name + suffix] = mean(known)
    placed = sum(len(part.units) for part in aligned)
    written = sum(len(i.delays) for i in instances)
    return LongReport(len(aligned), sum(not part.units for part in aligned), written - placed, values)


def read_segments(path: Path, references: Path) -> dict[str, list[Segment]]:
    """Reads IWSLT's segmentation: a YAML or JSON list of `{wav, offset, duration}` in seconds, a reference per entry.

    Returns:
        Segments by recording (name of the wav without folders and ending), in the order of the file.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected a list of segments, got {type(entries).__name__}")
    texts = references.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if len(texts) != len(entries):
        raise ValueError(f"{path} has {len(entries)} segments, {references} {len(texts)} lines")
    segments: dict[str, list[Segment]] = {}
    for n, (entry, text) in enumerate(zip(entries, texts, strict=True)):
        try:
            name, offset, duration = Path(entry["wav"]).stem, float(entry["offset"]), float(entry["duration"])
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: entry {n}: expected wav, offset and duration, got {entry!r}") from error
        if not (offset >= 0 and duration > 0):
            raise ValueError(f"{path}: entry {n}: offset {offset} and duration {duration} make no segment")
        segments.setdefault(name, []).append(Segment(offset * 1000, duration * 1000, text.strip()))
    return segments
