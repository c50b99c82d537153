"""Words for ROUGE in any language."""

import unicodedata

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score.tokenizers import Tokenizer

# Marks that do not compose with their letters, and what joins or parts these, belong to the word.
_WORD = regex.compile(r"[\p{L}\p{N}][\p{L}\p{N}\p{M}\p{Join_Control}]*")
_LONGEST_UNSTEMMED = 3  # rouge-score's own rule


class UnicodeTokenizer(Tokenizer):
    """rouge-score's tokens for ASCII text, and whole words elsewhere.

    Its default tokenizer drops every letter outside a-z: `fünf` becomes `f` and `nf`, and a
    Chinese answer becomes nothing, which scores 0 even when it is right.
    """

    def __init__(self, stem: bool):
        self._stemmer = PorterStemmer() if stem else None

    def tokenize(self, text: str) -> list[str]:
        """Lower-cased words, stemmed if so built."""
        words = _WORD.findall(unicodedata.normalize("NFC", text).lower())
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(w) if len(w) > _LONGEST_UNSTEMMED else w for w in words]
