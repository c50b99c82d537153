"""Random logs for comparing scores with other tools; the same on every machine.

Only `random.random()` is drawn from, whose sequence Python guarantees for a seed.
"""

from random import Random

from espnet_bestow.evaluate.chunk_log import Chunk, Recording
from espnet_bestow.evaluate.instances import Instance, Unit
from espnet_bestow.evaluate.longform import Segment

LOGS = 300
WORDS = ("ab", "abc", "b", "bcd", "cde", "d", "def", "efg", "fa", "gab", "hag", ",", ".", "-")


class Draw(Random):
    def below(self, n: int) -> int:
        return int(self.random() * n)

    def time(self, low: float, high: float) -> float:
        return round(low + self.random() * (high - low), 3)

    def words(self, count: int) -> list[str]:
        return [WORDS[self.below(len(WORDS))] for _ in range(count)]


def _times(draw: Draw, count: int, low: float, high: float) -> tuple[float, ...]:
    return tuple(sorted(draw.time(low, high) for _ in range(count)))


def _later(draw: Draw, times: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sorted(round(t + draw.time(0, 900), 3) for t in times))


def short_logs() -> list[Instance]:
    """Utterances of 0.3 to 20 s with 1 to 40 words; some begin after the end, some write most of it there."""
    draw = Draw(1)
    logs = []
    for index in range(LOGS):
        length = draw.time(300, 20000)
        units = draw.words(1 + draw.below(40))
        reach = (0.5, 1.0, 1.6)[draw.below(3)]
        delays = _times(draw, len(units), length * 1.01 if index % 50 == 7 else 0, length * reach)
        if index % 2:  # as SimulEval logs them: never beyond the end
            delays = tuple(min(d, length) for d in delays)
        reference = " ".join(draw.words(1 + draw.below(40)))
        elapsed = _later(draw, delays)
        logs.append(Instance(index, " ".join(units), delays, reference, length, f"/x/{index}.wav", elapsed))
    return logs


def long_log(index: int) -> tuple[list[Instance], dict[str, list[Segment]], Unit]:
    """Two recordings of 1 to 6 segments each, with answers that lose, change and add words."""
    draw = Draw(1000 + index)
    unit: Unit = "char" if index % 5 == 4 else "word"
    instances, segments = [], {}
    for recording in range(2):
        offset, reference = 0.0, []
        parts = segments[f"r{recording}"] = []
        for _ in range(1 + draw.below(6)):
            offset = round(offset + draw.time(0, 1000), 3)
            words = draw.words(1 + draw.below(9))
            parts.append(Segment(offset, draw.time(500, 5000), " ".join(words)))
            offset, reference = round(parts[-1].end, 3), reference + words
        written = [draw.words(1)[0] if draw.random() < 0.25 else w for w in reference if draw.random() > 0.15]
        for word in draw.words(draw.below(4)):
            written.insert(draw.below(len(written) + 1), word)
        units = list("".join(written or ["a"])) if unit == "char" else written or ["a"]
        delays = _times(draw, len(units), 100, offset * 1.1)
        text = ("" if unit == "char" else " ").join(units)
        source = f"/x/r{recording}.wav"
        instances.append(Instance(recording, text, delays, "x", offset, source, clock=_later(draw, delays)))
    return instances, segments, unit


def chunk_log(index: int) -> tuple[Recording, str]:
    """A recording whose chunks write, and now and then take back, words or pieces of words."""
    draw = Draw(2000 + index)
    join = ("word", "spm")[index % 2]
    tokens: list[str] = []
    chunks = []
    received = 0.0
    for _ in range(1 + draw.below(12)):
        received = round(received + (0.32, 0.5)[draw.below(2)], 3)
        back = draw.below(min(3, len(tokens)) + 1) if draw.random() < 0.4 else 0
        deleted = tuple(tokens[len(tokens) - back :])
        del tokens[len(tokens) - back :]
        written = []
        for _ in range(draw.below(4)):
            opens = join == "spm" and ((not tokens and not written) or draw.random() < 0.5)
            written.append(("▁" if opens else "") + "abc"[draw.below(3)])
        tokens += written
        chunks.append(Chunk(received, draw.time(0, 0.4), tuple(written), deleted))
    return Recording("talk.wav", tuple(chunks)), join
