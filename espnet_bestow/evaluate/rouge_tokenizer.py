"""Words for ROUGE in any language."""

import re
import unicodedata

from nltk.stem.porter import PorterStemmer
from rouge_score.tokenizers import Tokenizer

_WORD = re.compile(r"[^\W_]+")
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
