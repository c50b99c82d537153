"""Word tables of the grammar: every entry holds all forms that agreement may ask for."""

from dataclasses import dataclass
from typing import Literal

Gender = Literal["m", "f", "n"]
Case = Literal["nom", "acc"]


@dataclass(frozen=True)
class Noun:
    """A noun with its two numbers in both languages and its German gender."""

    en: str
    en_plural: str
    de: str
    de_plural: str
    gender: Gender


@dataclass(frozen=True)
class Word:
    """A word or fixed phrase that does not change: adjective stem, numeral, place or time."""

    en: str
    de: str


@dataclass(frozen=True)
class Verb:
    """A transitive verb: third person singular and base form (German plural = infinitive)."""

    en_singular: str
    en_base: str
    de_singular: str
    de_base: str


@dataclass(frozen=True)
class Modal:
    """A modal verb, singular and plural; German sends the infinitive to the end of the clause."""

    en_singular: str
    en_plural: str
    de_singular: str
    de_plural: str


DEFINITE_ARTICLE: dict[Case, dict[Gender, str]] = {
    "nom": {"m": "der", "f": "die", "n": "das"},
    "acc": {"m": "den", "f": "die", "n": "das"},
}
DEFINITE_ARTICLE_PLURAL = "die"

ACTORS = (
    Noun("dog", "dogs", "hund", "hunde", "m"),
    Noun("cat", "cats", "katze", "katzen", "f"),
    Noun("horse", "horses", "pferd", "pferde", "n"),
    Noun("bird", "birds", "vogel", "vögel", "m"),
    Noun("teacher", "teachers", "lehrer", "lehrer", "m"),
    Noun("doctor", "doctors", "arzt", "ärzte", "m"),
    Noun("child", "children", "kind", "kinder", "n"),
    Noun("woman", "women", "frau", "frauen", "f"),
    Noun("king", "kings", "könig", "könige", "m"),
    Noun("painter", "painters", "maler", "maler", "m"),
    Noun("girl", "girls", "mädchen", "mädchen", "n"),
    Noun("nurse", "nurses", "schwester", "schwestern", "f"),
)

THINGS = (
    Noun("apple", "apples", "apfel", "äpfel", "m"),
    Noun("book", "books", "buch", "bücher", "n"),
    Noun("flower", "flowers", "blume", "blumen", "f"),
    Noun("lamp", "lamps", "lampe", "lampen", "f"),
    Noun("letter", "letters", "brief", "briefe", "m"),
    Noun("window", "windows", "fenster", "fenster", "n"),
    Noun("table", "tables", "tisch", "tische", "m"),
    Noun("bottle", "bottles", "flasche", "flaschen", "f"),
)

ADJECTIVES = (
    Word("small", "klein"),
    Word("big", "groß"),
    Word("red", "rot"),
    Word("green", "grün"),
    Word("old", "alt"),
    Word("young", "jung"),
    Word("black", "schwarz"),
    Word("white", "weiß"),
    Word("new", "neu"),
    Word("good", "gut"),
)

NUMERALS = (
    Word("two", "zwei"),
    Word("three", "drei"),
    Word("four", "vier"),
    Word("five", "fünf"),
    Word("six", "sechs"),
    Word("seven", "sieben"),
    Word("eight", "acht"),
    Word("nine", "neun"),
    Word("ten", "zehn"),
)

VERBS = (
    Verb("sees", "see", "sieht", "sehen"),
    Verb("finds", "find", "findet", "finden"),
    Verb("buys", "buy", "kauft", "kaufen"),
    Verb("paints", "paint", "malt", "malen"),
    Verb("brings", "bring", "bringt", "bringen"),
    Verb("looks for", "look for", "sucht", "suchen"),
    Verb("knows", "know", "kennt", "kennen"),
    Verb("carries", "carry", "trägt", "tragen"),
)

MODALS = (
    Modal("can", "can", "kann", "können"),
    Modal("must", "must", "muss", "müssen"),
    Modal("wants to", "want to", "will", "wollen"),
    Modal("will", "will", "wird", "werden"),
)

PLACES = (
    Word("in the garden", "im garten"),
    Word("in the kitchen", "in der küche"),
    Word("at the station", "am bahnhof"),
    Word("in the school", "in der schule"),
    Word("on the bridge", "auf der brücke"),
    Word("in the forest", "im wald"),
    Word("behind the house", "hinter dem haus"),
    Word("beside the river", "neben dem fluss"),
)

TIMES = (
    Word("today", "heute"),
    Word("tomorrow", "morgen"),
    Word("on monday", "am montag"),
    Word("on friday", "am freitag"),
    Word("in the evening", "am abend"),
    Word("in the morning", "am vormittag"),
)
