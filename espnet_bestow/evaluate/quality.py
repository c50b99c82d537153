"""Quality metrics: hypotheses and references in, a `Tally` out (percent everywhere).

Both lists hold one plain text per utterance, in the same order. An empty hypothesis is legal.
"""

import unicodedata
from collections.abc import Callable, Sequence
from functools import cache

import jiwer
import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF
from whisper_normalizer.english import EnglishTextNormalizer

from espnet_bestow.evaluate.marked_text import MarkedTextNormalizer
from espnet_bestow.evaluate.tally import Tally

# Written without spaces between words: what is counted there is characters, as Whisper does.
UNSPACED_LANGUAGES = frozenset({"ja", "km", "lo", "my", "th", "yue", "zh"})

ERROR_COLUMNS = ("sub", "del", "ins", "ref")


def base_language(language: str) -> str:
    """`zh-CN` and `ZH_cn` are both `zh`."""
    return language.lower().replace("_", "-").split("-")[0]


@cache
def text_normalizer(language: str) -> Callable[[str], str]:
    """The normalizer that published word error rates use for a language; ours keeps marks that do not compose."""
    language = base_language(language)
    if language == "en":
        return EnglishTextNormalizer()
    return MarkedTextNormalizer(split_letters=language in UNSPACED_LANGUAGES)


def _check_paired(metric: str, hyps: Sequence[str], refs: Sequence[str]) -> None:
    if isinstance(hyps, str) or isinstance(refs, str):
        raise TypeError(f"{metric} needs a list of texts per side, got one text")
    if len(hyps) != len(refs):
        raise ValueError(f"{metric}: {len(hyps)} hypotheses but {len(refs)} references")
    if not refs:
        raise ValueError(f"{metric}: nothing to score, there are 0 utterances")


def _error_rate(totals: NDArray) -> NDArray:
    """Totals (R, 4) of `ERROR_COLUMNS` to percent (R,).

    A sample without a single reference token counts its insertions against one token, which keeps
    the value finite; a corpus like that is refused before it gets here.
    """
    return 100.0 * totals[:, :3].sum(axis=1) / np.maximum(totals[:, 3], 1)


def _count_errors(metric: str, hyps: Sequence[str], refs: Sequence[str], language: str) -> Tally:
    _check_paired(metric, hyps, refs)
    normalize = text_normalizer(language)
    align = jiwer.process_words if metric == "wer" else jiwer.process_characters
    rows = []
    for hyp, ref in zip(hyps, refs, strict=True):
        out = align(normalize(ref).strip(), normalize(hyp).strip())
        length = out.hits + out.substitutions + out.deletions
        rows.append((out.substitutions, out.deletions, out.insertions, length))
    statistics = np.array(rows, dtype=np.int64)
    if statistics[:, 3].sum() == 0:
        raise ValueError(
            f"{metric}: no reference text is left after normalization in any of "
            f"{len(refs)} utterances (first reference: {refs[0]!r})"
        )
    name = type(normalize).__name__
    return Tally(metric, statistics, _error_rate, ERROR_COLUMNS, f"norm:{name}")


def wer(hyps: Sequence[str], refs: Sequence[str], language: str = "en") -> Tally:
    """Word error rate after whisper normalization of both sides.

    Languages in `UNSPACED_LANGUAGES` are split into characters, so there it is the character rate.
    """
    return _count_errors("wer", hyps, refs, language)


def cer(hyps: Sequence[str], refs: Sequence[str], language: str = "en") -> Tally:
    """Character error rate (spaces count) after the same normalization as `wer`."""
    return _count_errors("cer", hyps, refs, language)


def _sacrebleu_tally(metric: BLEU | CHRF, name: str, hyps: Sequence[str], refs: Sequence[str]) -> Tally:
    """Tally of a sacrebleu metric.

    The two underscored methods are the ones that sacrebleu's own significance tests are made of;
    it has no public door to statistics per sentence.
    """
    _check_paired(name, hyps, refs)
    statistics = np.array(metric._extract_corpus_statistics(hyps, [list(refs)]), dtype=np.int64)

    def value_of(totals: NDArray) -> NDArray:
        scores = (metric._compute_score_from_stats(row).score for row in totals.tolist())
        return np.fromiter(scores, dtype=np.float64, count=len(totals))

    return Tally(name, statistics, value_of, signature=str(metric.get_signature()))


def bleu_metric(language: str) -> BLEU:
    """sacrebleu's BLEU for a target language.

    The tokenizer is 13a, or sacrebleu's own for Chinese, Japanese and Korean.

    Raises:
        ValueError: Japanese or Korean without `sacrebleu[ja]` or `sacrebleu[ko]`.
    """
    try:
        return BLEU(trg_lang=base_language(language))
    except RuntimeError as error:
        raise ValueError(f"bleu for {language!r}: {' '.join(str(error).split())}") from error


def bleu(hyps: Sequence[str], refs: Sequence[str], language: str = "en") -> Tally:
    """Corpus BLEU of sacrebleu, cased, punctuation kept; `language` is the target language."""
    return _sacrebleu_tally(bleu_metric(language), "bleu", hyps, refs)


def chrf(hyps: Sequence[str], refs: Sequence[str]) -> Tally:
    """Corpus chrF2 of sacrebleu (character 6-grams, no word n-grams)."""
    return _sacrebleu_tally(CHRF(), "chrf", hyps, refs)


def _mean_percent(totals: NDArray) -> NDArray:
    """Totals (R, 2) of (points, utterances) to the mean in percent (R,)."""
    return 100.0 * totals[:, 0] / np.maximum(totals[:, 1], 1)


def _mean_tally(metric: str, points: Sequence[float], signature: str = "") -> Tally:
    statistics = np.stack([np.asarray(points, dtype=np.float64), np.ones(len(points))], axis=1)
    return Tally(metric, statistics, _mean_percent, signature=signature)


def rouge_l(hyps: Sequence[str], refs: Sequence[str]) -> Tally:
    """Mean ROUGE-L F1 over utterances, words as they are."""
    return _rouge_l("rouge_l", hyps, refs, stem=False)


def rouge_l_stem(hyps: Sequence[str], refs: Sequence[str]) -> Tally:
    """Mean ROUGE-L F1 over utterances, words cut to their English (Porter) stems."""
    return _rouge_l("rouge_l_stem", hyps, refs, stem=True)


def _rouge_l(metric: str, hyps: Sequence[str], refs: Sequence[str], stem: bool) -> Tally:
    # rouge-score imports nltk, two seconds that only question answering should pay for.
    from rouge_score.rouge_scorer import RougeScorer

    from espnet_bestow.evaluate.rouge_tokenizer import UnicodeTokenizer

    _check_paired(metric, hyps, refs)
    scorer = RougeScorer(["rougeL"], tokenizer=UnicodeTokenizer(stem))
    points = [scorer.score(ref, hyp)["rougeL"].fmeasure for hyp, ref in zip(hyps, refs, strict=True)]
    return _mean_tally(metric, points, f"rougeL:F1|stem:{'yes' if stem else 'no'}")


def tidy(text: str) -> str:
    """Composed Unicode and single spaces: differences that nobody can see or hear."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(hyps: Sequence[str], refs: Sequence[str]) -> Tally:
    """Share of answers equal to the reference, case and punctuation included."""
    _check_paired("exact_match", hyps, refs)
    return _mean_tally("exact_match", [tidy(h) == tidy(r) for h, r in zip(hyps, refs, strict=True)])


def accuracy(hyps: Sequence[str], refs: Sequence[str]) -> Tally:
    """Share of labels equal to the reference, whatever their case."""
    _check_paired("accuracy", hyps, refs)
    pairs = zip(hyps, refs, strict=True)
    return _mean_tally("accuracy", [tidy(h).lower() == tidy(r).lower() for h, r in pairs])
