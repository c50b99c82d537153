"""Whisper's normalization of languages other than English, with the marks that are letters to their readers.

`BasicTextNormalizer` turns combining marks into blanks once they are composed with their letters, as far as Unicode
composes them. Where it does not, that loses vowels (Tamil, Hindi, Thai) and cuts words into pieces (pointed Arabic).
"""

import unicodedata

import regex
from whisper_normalizer.basic import BasicTextNormalizer

# Signs drawn around a symbol and the choice between two of its shapes are no part of a word.
_NO_LETTER_BEFORE = regex.compile(r"(?<![\p{L}\p{M}\p{Cf}])\p{M}+")
_DRAWN = regex.compile(r"[\p{Me}\p{Variation_Selector}]")


class MarkedTextNormalizer(BasicTextNormalizer):
    """`BasicTextNormalizer`, but marks stay with the letters before them."""

    def __init__(self, split_letters: bool = False):
        super().__init__(split_letters=split_letters)
        self.clean = _clean


def _clean(text: str) -> str:
    """Symbols and punctuation of a lower-case text become blanks."""
    text = unicodedata.normalize("NFKC", text)
    # Python keeps the dot of the Turkish capital above an i that has its own.
    text = text.replace("i\N{COMBINING DOT ABOVE}", "i")
    text = _NO_LETTER_BEFORE.sub(" ", _DRAWN.sub(" ", text))
    return "".join(" " if unicodedata.category(letter)[0] in "SP" else letter for letter in text)
