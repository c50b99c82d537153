"""Whole words from tokens: nothing is said before it can no longer change.

Works for any tokenizer, because it looks at decoded text only: text is cut at white space; in scripts that write
without spaces every character is a word of its own. A word is complete when the text goes on behind it.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple

_CHINESE_JAPANESE = (
    "\u3040-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3001-\u303f\uff01-\uff65"  # their punctuation
)
_INDIC = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
# Vowel signs and tones that stand behind their consonant and belong to it.
_MARKS = "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b4-\u17d3"
_CLOSED = re.compile(rf"[{_CHINESE_JAPANESE}]")
_UNIT = re.compile(rf"[{_CHINESE_JAPANESE}]|[{_INDIC}][{_MARKS}]*|[^\s{_CHINESE_JAPANESE}{_INDIC}]+")
_INCOMPLETE = "\ufffd"  # what a decoder writes for the first bytes of a character


class Unit(NamedTuple):
    """A complete word in the text of some tokens."""

    text: str
    before: str  # white space between it and the word before
    tokens: slice  # which tokens wrote it; neighbours share a token that wrote parts of both


class WordCutter:
    """Takes tokens one by one and gives words as soon as they are complete.

    All words, each after its ``before``, are exactly the decoded text of all tokens.

    Args:
        decode: tokens -> text without white space at its ends (``PromptTemplate.decode``).
    """

    def __init__(self, decode: Callable[[list[int]], str]):
        self.decode = decode
        self.ids: list[int] = []
        self._ends: list[int] = []  # length of the decoded text after each token
        self._done = 0  # characters of it that were given as words
        self._used = 0  # tokens of those

    def add(self, token: int) -> list[Unit]:
        """The words that this token completes."""
        self.ids.append(token)
        text = self.decode(self.ids).rstrip(_INCOMPLETE)
        last = self._ends[-1] if self._ends else 0
        self._ends.append(max(len(text), last))  # in order, whatever a decoder takes back
        return self._cut(text, whole=False)

    def finish(self) -> list[Unit]:
        """No more tokens: the rest is complete."""
        return self._cut(self.decode(self.ids), whole=True)

    def _cut(self, text: str, whole: bool) -> list[Unit]:
        found = []
        for match in _UNIT.finditer(text, self._done):
            if match.end() == len(text) and not whole and not _CLOSED.match(text, match.start()):
                break  # the next token may still be part of it
            before = text[self._done : match.start()] if self._done else ""
            first = bisect_right(self._ends, match.start())
            last = bisect_left(self._ends, match.end()) + 1
            found.append(Unit(match.group(), before, slice(min(first, self._used), last)))
            self._done, self._used = match.end(), last
        return found
