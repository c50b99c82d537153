"""A feature grammar: one clause, said exactly once in English and exactly once in German.

A clause is a set of choices (who, what, how many, where, when); both sentences are computed from
it, so each is the exact translation of the other. Two facts of word order make the pair a real
problem for a simultaneous system instead of a word-by-word copy:

* time: English says it last ("... today"), German first ("heute sieht der hund ...");
* modal verbs: German holds the main verb back to the very end ("kann ... im garten sehen").
"""

from dataclasses import dataclass
from random import Random

from espnet_bestow.corpus.lexicon import (
    ACTORS,
    ADJECTIVES,
    DEFINITE_ARTICLE,
    DEFINITE_ARTICLE_PLURAL,
    MODALS,
    NUMERALS,
    PLACES,
    THINGS,
    TIMES,
    VERBS,
    Case,
    Modal,
    Noun,
    Verb,
    Word,
)


@dataclass(frozen=True)
class NounPhrase:
    """A noun with its number; a numeral always means plural, and takes the article's place."""

    noun: Noun
    plural: bool = False
    adjective: Word | None = None
    numeral: Word | None = None

    @property
    def is_plural(self) -> bool:
        """Whether the verb that agrees with this phrase is plural."""
        return self.plural or self.numeral is not None


@dataclass(frozen=True)
class Clause:
    """What is said, before it is said in any language."""

    subject: NounPhrase
    verb: Verb
    object: NounPhrase
    modal: Modal | None = None
    place: Word | None = None
    time: Word | None = None

    @property
    def reordered(self) -> bool:
        """Whether the two languages order this clause differently."""
        return self.modal is not None or self.time is not None


def _join(*parts: str | None) -> str:
    return " ".join(part for part in parts if part)


def english_phrase(phrase: NounPhrase) -> str:
    """Return e.g. "the small dog", "the small dogs" or "three small dogs"."""
    return _join(
        phrase.numeral.en if phrase.numeral else "the",
        phrase.adjective.en if phrase.adjective else None,
        phrase.noun.en_plural if phrase.is_plural else phrase.noun.en,
    )


def _adjective_ending(phrase: NounPhrase, case: Case) -> str:
    if phrase.numeral:  # no article: strong ending
        return "e"
    if phrase.is_plural or (case == "acc" and phrase.noun.gender == "m"):
        return "en"
    return "e"


def german_phrase(phrase: NounPhrase, case: Case) -> str:
    """Return the German phrase with article, adjective ending and noun in agreement."""
    if phrase.numeral:
        head = phrase.numeral.de
    elif phrase.is_plural:
        head = DEFINITE_ARTICLE_PLURAL
    else:
        head = DEFINITE_ARTICLE[case][phrase.noun.gender]
    adjective = phrase.adjective.de + _adjective_ending(phrase, case) if phrase.adjective else None
    noun = phrase.noun.de_plural if phrase.is_plural else phrase.noun.de
    return _join(head, adjective, noun)


def english(clause: Clause) -> str:
    """Subject, verb, object, place, time."""
    plural = clause.subject.is_plural
    if clause.modal:
        modal = clause.modal.en_plural if plural else clause.modal.en_singular
        verb = f"{modal} {clause.verb.en_base}"
    else:
        verb = clause.verb.en_base if plural else clause.verb.en_singular
    return _join(
        english_phrase(clause.subject),
        verb,
        english_phrase(clause.object),
        clause.place.en if clause.place else None,
        clause.time.en if clause.time else None,
    )


def german(clause: Clause) -> str:
    """Time first, the finite verb second; behind a modal the main verb comes last."""
    plural = clause.subject.is_plural
    if clause.modal:
        finite = clause.modal.de_plural if plural else clause.modal.de_singular
    else:
        finite = clause.verb.de_base if plural else clause.verb.de_singular
    subject = german_phrase(clause.subject, "nom")
    front = (clause.time.de, finite, subject) if clause.time else (subject, finite)
    return _join(
        *front,
        german_phrase(clause.object, "acc"),
        clause.place.de if clause.place else None,
        clause.verb.de_base if clause.modal else None,
    )


def _draw_phrase(rng: Random, nouns: tuple[Noun, ...]) -> NounPhrase:
    noun = rng.choice(nouns)
    number = rng.random()
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.5 else None
    numeral = rng.choice(NUMERALS) if number >= 0.75 else None
    return NounPhrase(noun, plural=number >= 0.55, adjective=adjective, numeral=numeral)


def draw_clause(rng: Random) -> Clause:
    """Draw a clause; 35 % have a modal verb, 50 % a place and 40 % a time."""
    subject = _draw_phrase(rng, ACTORS)
    others = tuple(noun for noun in ACTORS + THINGS if noun != subject.noun)
    return Clause(
        subject=subject,
        verb=rng.choice(VERBS),
        object=_draw_phrase(rng, others),
        modal=rng.choice(MODALS) if rng.random() < 0.35 else None,
        place=rng.choice(PLACES) if rng.random() < 0.5 else None,
        time=rng.choice(TIMES) if rng.random() < 0.4 else None,
    )
