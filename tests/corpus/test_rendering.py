import pytest

from espnet_bestow.corpus.rendering import timed_words


def test_words_without_an_onset_share_the_time_of_their_neighbours():
    words = timed_words("the dog sees it", {4: 0.2, 8: 0.6}, end=1.6)
    assert [word.word for word in words] == ["the", "dog", "sees", "it"]
    starts = [word.start for word in words]
    assert starts == pytest.approx([0.0, 0.2, 0.6, 0.6 + 1.0 * 5 / 8])
    assert [word.end for word in words] == pytest.approx([*starts[1:], 1.6])


def test_a_clock_that_runs_backwards_is_held():
    words = timed_words("a b c d", {2: 0.9, 4: 0.5, 6: 2.0}, end=1.0)
    assert [word.start for word in words] == [0.0, 0.9, 0.9, 1.0]
    assert all(word.end >= word.start for word in words)
