"""Every sentence pair must be correct in both languages: checked by hand and by rule."""

import re
from random import Random

import pytest

from espnet_bestow.corpus.grammar import (
    Clause,
    NounPhrase,
    draw_clause,
    english,
    english_phrase,
    german,
    german_phrase,
)
from espnet_bestow.corpus.lexicon import (
    ACTORS,
    ADJECTIVES,
    MODALS,
    NUMERALS,
    PLACES,
    THINGS,
    TIMES,
    VERBS,
)

NOUN = {noun.en: noun for noun in ACTORS + THINGS}
ADJECTIVE = {word.en: word for word in ADJECTIVES}
NUMERAL = {word.en: word for word in NUMERALS}
VERB = {verb.en_singular: verb for verb in VERBS}
MODAL = {modal.en_singular: modal for modal in MODALS}
PLACE = {word.en: word for word in PLACES}
TIME = {word.en: word for word in TIMES}

HAND_WRITTEN = [
    (
        Clause(NounPhrase(NOUN["dog"]), VERB["sees"], NounPhrase(NOUN["cat"])),
        "the dog sees the cat",
        "der hund sieht die katze",
    ),
    (
        Clause(
            NounPhrase(NOUN["dog"]),
            VERB["sees"],
            NounPhrase(NOUN["bird"], numeral=NUMERAL["three"], adjective=ADJECTIVE["red"]),
            modal=MODAL["can"],
            place=PLACE["in the garden"],
        ),
        "the dog can see three red birds in the garden",
        "der hund kann drei rote vögel im garten sehen",
    ),
    (
        Clause(
            NounPhrase(NOUN["woman"], adjective=ADJECTIVE["old"]),
            VERB["looks for"],
            NounPhrase(NOUN["doctor"], adjective=ADJECTIVE["young"]),
            time=TIME["today"],
        ),
        "the old woman looks for the young doctor today",
        "heute sucht die alte frau den jungen arzt",
    ),
    (
        Clause(
            NounPhrase(NOUN["child"], plural=True, adjective=ADJECTIVE["small"]),
            VERB["carries"],
            NounPhrase(NOUN["flower"], plural=True),
            modal=MODAL["wants to"],
            place=PLACE["behind the house"],
            time=TIME["on monday"],
        ),
        "the small children want to carry the flowers behind the house on monday",
        "am montag wollen die kleinen kinder die blumen hinter dem haus tragen",
    ),
    (
        Clause(
            NounPhrase(NOUN["girl"], adjective=ADJECTIVE["big"]),
            VERB["buys"],
            NounPhrase(NOUN["apple"], adjective=ADJECTIVE["green"]),
            modal=MODAL["will"],
            time=TIME["tomorrow"],
        ),
        "the big girl will buy the green apple tomorrow",
        "morgen wird das große mädchen den grünen apfel kaufen",
    ),
    (
        Clause(
            NounPhrase(NOUN["teacher"], numeral=NUMERAL["two"]),
            VERB["knows"],
            NounPhrase(NOUN["king"], plural=True, adjective=ADJECTIVE["good"]),
            place=PLACE["beside the river"],
        ),
        "two teachers know the good kings beside the river",
        "zwei lehrer kennen die guten könige neben dem fluss",
    ),
]


@pytest.mark.parametrize(("clause", "en", "de"), HAND_WRITTEN)
def test_hand_written_translations(clause, en, de):
    assert english(clause) == en
    assert german(clause) == de


@pytest.mark.parametrize(
    ("noun", "nominative", "accusative", "plural"),
    [
        ("dog", "der alte hund", "den alten hund", "die alten hunde"),
        ("cat", "die alte katze", "die alte katze", "die alten katzen"),
        ("horse", "das alte pferd", "das alte pferd", "die alten pferde"),
    ],
)
def test_articles_and_adjective_endings(noun, nominative, accusative, plural):
    old = ADJECTIVE["old"]
    one = NounPhrase(NOUN[noun], adjective=old)
    many = NounPhrase(NOUN[noun], plural=True, adjective=old)
    assert german_phrase(one, "nom") == nominative
    assert german_phrase(one, "acc") == accusative
    assert german_phrase(many, "nom") == german_phrase(many, "acc") == plural
    two = NounPhrase(NOUN[noun], numeral=NUMERAL["two"], adjective=old)
    expected = f"zwei alte {NOUN[noun].de_plural}"
    assert german_phrase(two, "nom") == german_phrase(two, "acc") == expected


@pytest.fixture(scope="module")
def clauses():
    rng = Random(5)
    return [draw_clause(rng) for _ in range(5000)]


def test_verbs_agree_with_their_subject(clauses):
    singular = {m.de_singular for m in MODALS} | {v.de_singular for v in VERBS}
    plural = {m.de_plural for m in MODALS} | {v.de_base for v in VERBS}
    for clause in clauses:
        front = clause.time.de if clause.time else german_phrase(clause.subject, "nom")
        finite = german(clause).removeprefix(front + " ").split()[0]
        assert finite in (plural if clause.subject.is_plural else singular), german(clause)
        second = english(clause).removeprefix(english_phrase(clause.subject) + " ").split()[0]
        third_person = second.endswith("s") and second not in {"must"}
        assert third_person == (
            not clause.subject.is_plural and (clause.modal is None or clause.modal.en_singular == "wants to")
        ), english(clause)


def test_word_order(clauses):
    for clause in clauses:
        de, en = german(clause), english(clause)
        if clause.time:
            assert de.startswith(clause.time.de + " ")
            assert en.endswith(" " + clause.time.en)
        if clause.modal:
            assert de.endswith(" " + clause.verb.de_base)
        assert clause.reordered == bool(clause.time or clause.modal)


def test_a_sentence_determines_its_translation(clauses):
    to_german = {english(clause): german(clause) for clause in clauses}
    to_english = {german(clause): english(clause) for clause in clauses}
    assert len(to_german) == len(to_english)
    assert all(to_english[de] == en for en, de in to_german.items())


def test_text_is_lower_case_words(clauses):
    for clause in clauses:
        assert re.fullmatch(r"[a-zäöüß]+( [a-zäöüß]+)*", german(clause))
        assert re.fullmatch(r"[a-z]+( [a-z]+)*", english(clause))


def test_shares_of_modal_place_and_time(clauses):
    for feature, share in (("modal", 0.35), ("place", 0.5), ("time", 0.4)):
        found = sum(getattr(clause, feature) is not None for clause in clauses) / len(clauses)
        assert found == pytest.approx(share, abs=0.03)
    assert all(clause.subject.noun != clause.object.noun for clause in clauses)
