import pytest

from espnet_bestow.evaluate.emission import (
    SpokenWord,
    emission_delays,
    matched_words,
    read_ctm,
    word_emission_delays,
)

SPOKEN = [SpokenWord("der", 100, 250), SpokenWord("alte", 260, 600), SpokenWord("mann", 620, 1000)]


def test_ctm_is_read_in_milliseconds(tmp_path):
    (tmp_path / "ctm").write_text("utt1 1 0.260 0.340 alte\nutt1 1 0.100 0.150 der\n\nutt2 1 1.0 0.5 ja 0.99\n")
    words = read_ctm(tmp_path / "ctm")
    assert list(words) == ["utt1", "utt2"]
    assert [w.text for w in words["utt1"]] == ["der", "alte"]
    assert words["utt1"][1].onset == pytest.approx(260)
    assert words["utt1"][1].end == pytest.approx(600)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("utt1 1 x 0.3 word", "ctm:1: expected"),
        ("utt1 1 0.3 0.1", "ctm:1: expected"),
        ("utt1 1 -1 0.1 word", "at least 0, got -1"),
        ("\n", "holds no word"),
    ],
)
def test_broken_ctm_is_an_error(tmp_path, line, message):
    (tmp_path / "ctm").write_text(line)
    with pytest.raises(ValueError, match=message):
        read_ctm(tmp_path / "ctm")


def test_only_right_words_are_measured():
    delays = word_emission_delays(["Der", "kalte", "Mann."], [900.0, 1200.0, 1500.0], SPOKEN)
    assert delays.tolist() == [800, 880]


def test_inserted_words_shift_nothing():
    assert matched_words(["oh", "der", "alte", "alte", "mann"], ["der", "alte", "mann"]) in (
        [(1, 0), (2, 1), (4, 2)],
        [(1, 0), (3, 1), (4, 2)],
    )
    assert matched_words([], ["der"]) == matched_words(["der"], []) == []


def test_percentiles_over_a_test_set():
    written = (["der", "alte", "mann"], [600.0, 1260.0, 2120.0], SPOKEN)  # 500, 1000, 1500 late
    silent = ([], [], SPOKEN)
    delays = emission_delays([written, silent])
    assert delays.percentile(50) == 1000
    assert delays.percentile(90) == pytest.approx(1400)
    assert (len(delays.milliseconds), delays.spoken) == (3, 6)
    assert emission_delays([silent]).percentile(50) is None


def test_times_must_fit_words():
    with pytest.raises(ValueError, match="2 words were written but there are 1 times"):
        word_emission_delays(["der", "alte"], [1.0], SPOKEN)
