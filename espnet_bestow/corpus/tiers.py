"""How much of the corpus to make, and how its splits sound."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from espnet_bestow.corpus.voices import SEEN_VOICES, UNSEEN_VOICES, Voice


@dataclass(frozen=True)
class Shape:
    """Utterances that join several sentences: how many of them, and the seconds they fill."""

    sentences: tuple[int, ...]
    seconds: tuple[float, float]


@dataclass(frozen=True)
class Conditions:
    """How a split sounds: voices, noise (dB; None is clean), and the shares of joined utterances and of questions."""

    voices: tuple[Voice, ...] = SEEN_VOICES
    snrs: tuple[int | None, ...] = (None, None, 25, 20, 15, 10)
    joined: Shape | None = None
    joined_share: float = 0.0
    asked_share: float = 1.0  # of utterances of one sentence: those that come with a question


CONDITIONS: Mapping[str, Conditions] = {
    # Answers are quickly learned: with a question about every sentence, they would take more of the training than they
    # need.
    "train": Conditions(joined=Shape((2, 3), (2.5, 8.0)), joined_share=0.05, asked_share=1 / 3),
    "valid": Conditions(),
    "test": Conditions(),
    "test_unseen": Conditions(voices=UNSEEN_VOICES),
    "test_noisy": Conditions(snrs=tuple(range(11))),
    "test_long": Conditions(joined=Shape((3, 4), (8.0, 15.0)), joined_share=1.0),
}


@dataclass(frozen=True)
class Tier:
    """A size of the corpus: utterances by split, and lines of text for the language model."""

    name: str
    utterances: Mapping[str, int]
    lm_lines: int
    rates: tuple[int, ...] = (140, 155, 170, 185, 200, 220)
    conditions: Mapping[str, Conditions] = field(default_factory=lambda: CONDITIONS)


def _tier(name: str, sizes: tuple[int, ...], lm_lines: int) -> Tier:
    return Tier(name, dict(zip(CONDITIONS, sizes, strict=True)), lm_lines)


TIERS: Mapping[str, Tier] = {
    tier.name: tier
    for tier in (
        _tier("smoke", (120, 20, 20, 16, 16, 8), 2000),
        _tier("mini", (4000, 150, 400, 200, 200, 60), 20000),
        _tier("full", (20000, 400, 400, 400, 400, 120), 100000),
    )
}
