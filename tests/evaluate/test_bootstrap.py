import numpy as np
import pytest

from espnet_bestow.evaluate import bootstrap, quality
from espnet_bestow.evaluate.bootstrap import (
    confidence_interval,
    difference_interval,
    ratio_intervals,
    resample_totals,
)


def mean(totals):
    return totals[:, 0] / totals[:, 1]


def bernoulli(count: int, rate: float, seed: int = 1):
    hits = np.random.default_rng(seed).random(count) < rate
    return np.stack([hits, np.ones(count)], axis=1).astype(float)


def test_totals_are_sums_over_n_draws():
    statistics = np.array([[1, 10], [2, 10], [4, 10]])
    totals = resample_totals(statistics, resamples=200)
    assert totals.shape == (200, 2)
    assert (totals[:, 1] == 30).all()
    assert totals[:, 0].min() >= 3 and totals[:, 0].max() <= 12
    assert len(set(totals[:, 0].tolist())) > 3


def test_interval_covers_the_value_and_agrees_with_theory():
    statistics = bernoulli(400, 0.3)
    value = statistics[:, 0].mean()
    low, high = confidence_interval(statistics, mean, resamples=4000)
    assert low < value < high
    normal_width = 2 * 1.96 * np.sqrt(value * (1 - value) / 400)
    assert high - low == pytest.approx(normal_width, rel=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    intervals = [confidence_interval(bernoulli(200, 0.4, seed), mean) for seed in range(100)]
    covered = sum(low <= 0.4 <= high for low, high in intervals)
    assert 88 <= covered <= 100


def test_interval_narrows_with_n():
    widths = [high - low for low, high in (confidence_interval(bernoulli(n, 0.5), mean) for n in (25, 400, 6400))]
    assert widths[0] > 3 * widths[1] > 9 * widths[2]


def test_same_seed_same_interval_whatever_the_block_size(monkeypatch):
    statistics = bernoulli(50, 0.5)
    first = resample_totals(statistics)
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 130)
    np.testing.assert_array_equal(first, resample_totals(statistics))
    assert not np.array_equal(first, resample_totals(statistics, seed=1))


def test_one_utterance_has_a_point_interval():
    tally = quality.wer(["a cat"], ["a dog"])
    score = tally.score()
    assert (score.n, score.low, score.value, score.high) == (1, 50, 50, 50)


def test_bleu_interval_equals_rescoring_resampled_text():
    refs = [f"the {w} dog sees three birds in house {i}" for i, w in enumerate("abcdefghij")]
    hyps = [r.replace("dog", "cat") if i % 3 else r for i, r in enumerate(refs)]
    tally = quality.bleu(hyps, refs)
    resamples = 20
    got = tally.value_of(resample_totals(tally.statistics, resamples))
    rng = np.random.default_rng(bootstrap.SEED)
    weights = rng.multinomial(len(refs), [0.1] * 10, size=resamples)
    for value, row in zip(got, weights, strict=True):
        drawn = [i for i, times in enumerate(row) for _ in range(times)]
        again = quality.bleu([hyps[i] for i in drawn], [refs[i] for i in drawn])
        assert value == pytest.approx(again.score(resamples=1).value)


def test_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(300)  # both systems fail on the same utterances
    a = np.stack([hard < 0.60, np.ones(300)], axis=1).astype(float)
    b = np.stack([hard < 0.55, np.ones(300)], axis=1).astype(float)
    low, high = difference_interval(a, b, mean)
    assert 0 < low < (a - b)[:, 0].mean() < high
    a_low, a_high = confidence_interval(a, mean)
    _, b_high = confidence_interval(b, mean)
    assert a_low < b_high, "the two intervals overlap, only the paired one tells them apart"
    assert high - low < (a_high - a_low) / 2
    assert difference_interval(a, a, mean) == (0, 0)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\(0, 2\)"):
        resample_totals(np.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"resamples.* 0"):
        resample_totals(np.ones((2, 2)), resamples=0)
    with pytest.raises(ValueError, match=r"level.*95"):
        confidence_interval(np.ones((2, 2)), mean, level=95)
    with pytest.raises(ValueError, match="2 and 3"):
        difference_interval(np.ones((2, 2)), np.ones((3, 2)), mean)


def test_many_ratios_have_the_intervals_they_have_alone():
    a, b = bernoulli(50, 0.3), bernoulli(50, 0.6, seed=2)
    b[:10] = 0  # utterances without this quantity
    together = ratio_intervals(np.stack([a[:, 0], b[:, 0]], axis=1), np.stack([a[:, 1], b[:, 1]], axis=1))
    assert together[0] == pytest.approx(confidence_interval(a, mean))
    assert together[1] == pytest.approx(confidence_interval(b, mean))


def test_a_quantity_that_nobody_has_is_zero():
    assert ratio_intervals(np.zeros((5, 1)), np.zeros((5, 1))) == [(0.0, 0.0)]
