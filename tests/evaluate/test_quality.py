import unicodedata

import jiwer
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from whisper_normalizer.basic import BasicTextNormalizer

from espnet_bestow.evaluate import quality
from espnet_bestow.evaluate.rouge_tokenizer import UnicodeTokenizer


def random_pairs(count: int, seed: int = 3) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(seed)
    words = ["the", "dog", "cat", "sees", "three", "red", "birds", "today", "house", "ran"]
    refs = [" ".join(rng.choice(words, rng.integers(3, 12))) for _ in range(count)]
    hyps = [" ".join(w if rng.random() > 0.2 else rng.choice(words) for w in ref.split()) for ref in refs]
    hyps[0] = ""
    return hyps, refs


def value(tally) -> float:
    return tally.score(resamples=2).value


def test_wer_counts_by_hand():
    # substitution; insertion; all deleted; right: 1 + 1 + 2 errors over 3 + 2 + 2 + 1 words
    refs = ["red green blue", "big dog", "old house", "yes"]
    hyps = ["red brown blue", "a big dog", "", "yes"]
    tally = quality.wer(hyps, refs, "en")
    assert tally.columns == ("sub", "del", "ins", "ref")
    assert tally.statistics.tolist() == [[1, 0, 0, 3], [0, 0, 1, 2], [0, 2, 0, 2], [0, 0, 0, 1]]
    assert value(tally) == pytest.approx(100 * 4 / 8)
    assert tally.utterance_values().tolist() == pytest.approx([100 / 3, 50, 100, 0])


def test_wer_equals_jiwer_on_normalized_text():
    hyps, refs = random_pairs(60)
    assert value(quality.wer(hyps, refs, "de")) == pytest.approx(100 * jiwer.wer(refs, hyps))
    assert value(quality.cer(hyps, refs, "de")) == pytest.approx(100 * jiwer.cer(refs, hyps))


def test_english_is_normalized_on_both_sides():
    refs = ["Twenty-three colours, Mr. Smith don't mind!"]
    hyps = ["23 colors mister smith do not mind"]
    assert value(quality.wer(hyps, refs, "en")) == 0
    assert value(quality.wer(hyps, refs, "de")) > 0


def test_german_keeps_umlauts_whatever_their_encoding():
    refs, hyps = ["Drei Vögel."], ["drei vögel"]
    decomposed = [unicodedata.normalize("NFD", hyps[0])]
    assert decomposed != hyps
    assert value(quality.wer(decomposed, refs, "de")) == 0
    assert value(quality.wer(["drei vogel"], refs, "de")) == 50


@pytest.mark.parametrize(
    ("language", "ref", "hyp", "errors"),
    [
        ("ta", "மாமா கா", "மிமி கி", [2, 0, 0, 2]),
        ("hi", "की", "का", [1, 0, 0, 1]),
        ("ar", "كِتَاب جديد", "كتاب جديد", [1, 0, 0, 2]),
        ("yo", "ọ̀rọ̀", "ọrọ", [1, 0, 0, 1]),
        ("th", "น้ำ", "นำ", [1, 0, 0, 2]),  # without spaces: letters with their marks are counted
        ("si", "වාක්‍ය, එක", "වාක්‍ය එක", [0, 0, 0, 2]),
        ("tr", "İstanbul", "istanbul", [0, 0, 0, 1]),
    ],
)
def test_marks_belong_to_their_letters(language, ref, hyp, errors):
    tally = quality.wer([hyp], [ref], language)
    assert tally.statistics.tolist() == [errors]
    assert tally.signature == "norm:MarkedTextNormalizer"
    assert value(quality.wer([ref], [unicodedata.normalize("NFD", ref)], language)) == 0


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "Größe, [lacht] »fünf« (äh) 1️⃣ ❤️ Gräser´s 5² Straße️!"),
        ("fr", "L'été, ça coûte 5 € ; Noël à l’Haÿ-les-Roses… ½ ﬁlle"),
        ("vi", "Tiếng Việt có dấu: ệ ữ ộ — “thế à?”"),
        ("cs", "Příliš žluťoučký kůň ů ď"),
        ("ja", "ｶﾞﾗｽ、がらす゛ 葛󠄀城（笑）"),
        ("ko", "한국어, 안녕하세요!"),
        ("zh", "你好，世界 5％ ABC"),
    ],
)
def test_where_marks_compose_nothing_differs_from_whisper(language, text):
    whisper = BasicTextNormalizer(split_letters=language in quality.UNSPACED_LANGUAGES)
    for form in ("NFC", "NFD"):
        written = unicodedata.normalize(form, text)
        assert quality.text_normalizer(language)(written) == whisper(written)


def test_languages_without_spaces_count_characters():
    tally = quality.wer(["你好世间"], ["你好世界"], "zh-CN")
    assert tally.statistics.tolist() == [[1, 0, 0, 4]]


def test_empty_reference_counts_insertions():
    tally = quality.wer(["oh no", "yes"], ["", "yes"], "en")
    assert tally.statistics.tolist() == [[0, 0, 2, 0], [0, 0, 0, 1]]
    assert value(tally) == 200
    assert np.isfinite(tally.utterance_values()).all()


def test_no_reference_words_at_all_is_an_error():
    with pytest.raises(ValueError, match=r"no reference text.*2 utterances.*'\(laughs\)'"):
        quality.wer(["a", "b"], ["(laughs)", ""], "en")


@pytest.mark.parametrize("metric", [quality.wer, quality.bleu, quality.chrf, quality.rouge_l, quality.accuracy])
def test_sides_of_different_length_and_nothing_to_score(metric):
    with pytest.raises(ValueError, match="1 hypotheses but 2 references"):
        metric(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="0 utterances"):
        metric([], [])
    with pytest.raises(TypeError, match="list of texts"):
        metric("a", ["a"])


def test_bleu_and_chrf_equal_sacrebleu():
    hyps, refs = random_pairs(50)
    expected = sacrebleu.corpus_bleu(hyps, [refs])
    tally = quality.bleu(hyps, refs, "de")
    assert value(tally) == pytest.approx(expected.score)
    assert "tok:13a" in tally.signature and "case:mixed" in tally.signature
    assert value(quality.chrf(hyps, refs)) == pytest.approx(sacrebleu.corpus_chrf(hyps, [refs]).score)


def test_bleu_keeps_case_and_punctuation():
    ref = ["The dog sees three birds."]
    assert value(quality.bleu(ref, ref)) == pytest.approx(100)
    assert value(quality.bleu(["the dog sees three birds."], ref)) < 100
    assert value(quality.bleu(["The dog sees three birds"], ref)) < 100


def test_bleu_tokenizer_follows_the_target_language():
    refs, hyps = ["今天狗在花园里看见三只鸟"], ["今天狗在花园里看见三只猫"]
    chinese = quality.bleu(hyps, refs, "zh")
    assert "tok:zh" in chinese.signature
    assert value(chinese) > 80 > value(quality.bleu(hyps, refs, "en"))


def test_rouge_l_by_hand():
    # longest common subsequence "the dog" of 3 and 2 words: P = 2/2, R = 2/3, F = 0.8
    tally = quality.rouge_l(["the dog", "cat"], ["The old dog.", "dog"])
    assert tally.utterance_values().tolist() == pytest.approx([80, 0])
    assert value(tally) == pytest.approx(40)
    assert value(quality.rouge_l(["the dogs"], ["the dog"])) == pytest.approx(50)
    assert value(quality.rouge_l_stem(["three birds"], ["three bird"])) == pytest.approx(100)


@pytest.mark.parametrize("stem", [False, True])
def test_rouge_l_equals_rouge_score_on_ascii(stem):
    hyps, refs = random_pairs(40)
    refs[1] = "He's running_away; 2 houses, (maybe) 30% bigger"
    scorer = RougeScorer(["rougeL"], use_stemmer=stem)
    expected = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(hyps, refs, strict=True)]
    metric = quality.rouge_l_stem if stem else quality.rouge_l
    assert metric(hyps, refs).utterance_values() / 100 == pytest.approx(np.array(expected))


def test_rouge_tokens_of_other_alphabets():
    assert UnicodeTokenizer(stem=False).tokenize("Fünf_Vögel, 你好!") == ["fünf", "vögel", "你好"]
    assert UnicodeTokenizer(stem=False).tokenize("हिन्दी में_கா ❤️ 1") == ["हिन्दी", "में", "கா", "1"]
    assert value(quality.rouge_l(["你好"], ["你好"])) == 100
    assert value(quality.rouge_l(["की"], ["का"])) == 0


def test_exact_match_is_strict_and_accuracy_forgives_case():
    refs = ["In the garden", "on light kitchen", "fünf"]
    hyps = ["in the garden", " on  light kitchen ", unicodedata.normalize("NFD", "fünf")]
    assert quality.exact_match(hyps, refs).utterance_values().tolist() == [0, 100, 100]
    assert quality.accuracy(hyps, refs).utterance_values().tolist() == [100, 100, 100]
    assert value(quality.accuracy(["on lights kitchen"], ["on light kitchen"])) == 0
