"""How well a text LLM predicts text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from espnet_bestow.llm.text_lines import encode_lines
from espnet_bestow.llm.text_training import measure


@dataclass(frozen=True)
class Perplexity:
    """Scores of a text; the end of a line counts as a token and as a word."""

    n: int
    """Lines."""
    tokens: int
    words: int
    token_perplexity: float
    word_perplexity: float


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    batch_size: int = 64,
) -> Perplexity:
    """Perplexity of ``lines``, each scored alone."""
    context = getattr(model.config, "max_position_embeddings", None)
    totals = measure(model, encode_lines(tokenizer, lines, context), batch_size)
    words = sum(len(line.split()) + 1 for line in lines)
    return Perplexity(
        n=len(lines),
        tokens=totals.tokens,
        words=words,
        token_perplexity=math.exp(totals.loss / totals.tokens),
        word_perplexity=math.exp(totals.loss / words),
    )
