"""What will be said, by whom and how: the whole corpus on paper, before any audio is made."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from espnet_bestow.corpus.acoustics import Channel
from espnet_bestow.corpus.commands import Command, all_commands
from espnet_bestow.corpus.grammar import Clause, draw_clause, english
from espnet_bestow.corpus.rendering import Delivery
from espnet_bestow.corpus.tasks import (
    Example,
    command_examples,
    question_example,
    sentence_examples,
    transcript,
)
from espnet_bestow.corpus.tiers import Conditions, Shape, Tier
from espnet_bestow.corpus.voices import Voice

# Of 25 utterances in a row 5 are commands (20 %), 10 English and 10 German sentences.
_CYCLE = ("command", *("en", "de") * 2) * 5
_PAUSE_SECONDS = (0.3, 0.6)
# Commands are a closed set: this share of them is kept for the splits other than train.
_HELD_OUT_COMMANDS = 0.3


@dataclass(frozen=True)
class Utterance:
    """One audio file to be: its words, its sound, and the examples it serves."""

    id: str
    split: str
    voice: Voice
    delivery: Delivery
    channel: Channel
    sentences: tuple[str, ...]
    pauses: tuple[float, ...]
    seconds: tuple[float, float] | None
    translation: str | None
    reordered: bool
    examples: tuple[Example, ...]
    seed: int

    @property
    def transcript(self) -> str:
        """What is said."""
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Content:
    """The linguistic half of an utterance."""

    language: str
    sentences: tuple[str, ...]
    translation: str | None
    reordered: bool
    examples: tuple[Example, ...]


@dataclass
class SentencePool:
    """Hands out clauses that nobody was given before."""

    used: set[str] = field(default_factory=set)

    def draw(self, rng: Random) -> Clause:
        """Draw a new clause."""
        while True:
            clause = draw_clause(rng)
            sentence = english(clause)
            if sentence not in self.used:
                self.used.add(sentence)
                return clause


def stable_seed(*parts: object) -> int:
    """Turn `parts` into a number below 2 ** 31, the same in every process."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def split_commands(seed: int) -> tuple[list[Command], list[Command]]:
    """Divide the commands between train and all other splits; no wording is in both."""
    commands = all_commands()
    Random(f"{seed}/commands").shuffle(commands)
    held_out = round(len(commands) * _HELD_OUT_COMMANDS)
    return commands[held_out:], commands[:held_out]


def _sentence_content(
    rng: Random, pool: SentencePool, language: str, shape: Shape | None, asked_share: float
) -> Content:
    count = rng.choice(shape.sentences) if shape else 1
    clauses = tuple(pool.draw(rng) for _ in range(count))
    examples = sentence_examples(rng, clauses, language)
    if not shape:  # of several sentences, nobody would know which is meant
        question = question_example(rng, clauses[0])
        if rng.random() < asked_share:
            examples.append(question)
    other = {"en": "de", "de": "en"}[language]
    return Content(
        language=language,
        sentences=tuple(transcript((clause,), language) for clause in clauses),
        translation=transcript(clauses, other),
        reordered=any(clause.reordered for clause in clauses),
        examples=tuple(examples),
    )


def _command_content(rng: Random, commands: list[Command]) -> Content:
    command = rng.choice(commands)
    return Content("en", (command.text,), None, False, tuple(command_examples(rng, command)))


def _utterance(name: str, split: str, content: Content, conditions: Conditions, rates: tuple[int, ...]) -> Utterance:
    """Give `content` a voice and a place; `name` seeds every choice."""
    rng = Random(name)
    voice = rng.choice(conditions.voices)
    joined = len(content.sentences) > 1
    return Utterance(
        id=f"{voice.speaker}-{name.rpartition('/')[2]}",
        split=split,
        voice=voice,
        delivery=Delivery(
            language=content.language,
            variant=voice.variant,
            rate=rng.choice(rates),
            pitch=rng.randint(30, 70),
            pitch_range=rng.randint(20, 80),
        ),
        channel=Channel(snr=rng.choice(conditions.snrs), gain=round(rng.uniform(0.3, 0.95), 3)),
        sentences=content.sentences,
        pauses=tuple(round(rng.uniform(*_PAUSE_SECONDS), 3) for _ in content.sentences[1:]),
        seconds=conditions.joined.seconds if joined and conditions.joined else None,
        translation=content.translation,
        reordered=content.reordered,
        examples=content.examples,
        seed=stable_seed(name),
    )


def plan_split(split: str, tier: Tier, seed: int, pool: SentencePool) -> Iterator[Utterance]:
    """Plan one split, drawing its sentences from `pool`."""
    conditions = tier.conditions[split]
    train_commands, other_commands = split_commands(seed)
    commands = train_commands if split == "train" else other_commands
    for index in range(tier.utterances[split]):
        rng = Random(f"{seed}/{split}/{index}/content")
        kind = _CYCLE[index % len(_CYCLE)]
        if conditions.joined_share == 1:  # commands are not joined, so there are none
            kind = ("en", "de")[index % 2]
        if kind == "command":
            content = _command_content(rng, commands)
        else:
            joined = rng.random() < conditions.joined_share
            shape = conditions.joined if joined else None
            content = _sentence_content(rng, pool, kind, shape, conditions.asked_share)
        name = f"{seed}/{split}_{index:05d}"
        yield _utterance(name, split, content, conditions, tier.rates)


def plan_corpus(tier: Tier, seed: int) -> dict[str, list[Utterance]]:
    """Plan all splits of `tier`; no sentence is said in two utterances, commands aside."""
    pool = SentencePool()
    return {split: list(plan_split(split, tier, seed, pool)) for split in tier.utterances}
