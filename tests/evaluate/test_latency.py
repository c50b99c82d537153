import numpy as np
import pytest

from espnet_bestow.evaluate import latency


def test_metrics_by_hand():
    # Four units over 4 s, the reference has two: a writer paced by it is one unit per 2 s.
    delays, length, reference = [1000, 2000, 4000, 4000], 4000, 2
    assert latency.al(delays, length, reference) == pytest.approx((1000 + 0 + 0) / 3)
    assert latency.laal(delays, length, reference) == pytest.approx((1000 + 1000 + 2000) / 3)
    assert latency.ap(delays, length, reference) == pytest.approx(11000 / 8000)
    assert latency.dal(delays, length, reference) == pytest.approx((1000 + 1000 + 2000 + 2000) / 4)
    assert latency.yaal(delays, length, reference) == pytest.approx((1000 + 1000) / 2)
    assert latency.start_offset(delays, length) == 1000
    assert latency.end_offset(delays, length) == 0


def test_offline_lags_by_the_whole_source():
    delays = [4000.0] * 8
    assert latency.al(delays, 4000, 8) == latency.laal(delays, 4000, 8) == 4000
    assert latency.yaal(delays, 4000, 8) is None


def test_a_first_unit_after_the_end_lags_by_its_own_delay():
    assert latency.laal([4100, 4200], 4000, 2) == 4100
    assert latency.al([4100, 4200], 4000, 2) == 4100


def test_lag_may_be_negative():
    """A writer that runs ahead of a slow speaker, as wait-1 does."""
    assert latency.laal([100, 200, 300], 6000, 3) == pytest.approx((100 - 1800 - 3700) / 3)


def test_time_may_have_any_unit():
    seconds, milliseconds = np.array([0.4, 0.9, 1.6]), [400, 900, 1600]
    for name, metric in latency.METRICS.items():
        scale = 1 if name in latency.UNITLESS else 1000
        assert metric(seconds, 2.0, 4) * scale == pytest.approx(metric(milliseconds, 2000, 4))


def test_yaal_of_a_segment_counts_up_to_the_end_of_the_recording():
    delays = [500, 1500, 2500, 4000]
    assert latency.yaal(delays, 2000, 4) == pytest.approx((500 + 1000) / 2)
    assert latency.yaal(delays, 2000, 4, end=4000) == pytest.approx((500 + 1000 + 1500) / 3)


def test_more_words_never_lower_laal_below_al():
    delays = [1000, 1500, 2000, 2500, 3000]
    assert latency.laal(delays, 4000, 2) > latency.al(delays, 4000, 2)
    assert latency.laal(delays, 4000, 9) == latency.al(delays, 4000, 9)


@pytest.mark.parametrize("metric", latency.METRICS.values(), ids=list(latency.METRICS))
def test_what_has_no_latency_is_refused(metric):
    with pytest.raises(ValueError, match="without units"):
        metric([], 1000, 3)
    with pytest.raises(ValueError, match="positive, got 0"):
        metric([1.0], 0, 3)
    with pytest.raises(ValueError, match="finite, got nan"):
        metric([1.0, float("nan")], 1000, 3)


@pytest.mark.parametrize("metric", [latency.al, latency.ap])
def test_an_empty_reference_is_refused(metric):
    with pytest.raises(ValueError, match="at least 1 unit, got 0"):
        metric([1.0], 1000, 0)


def test_clock_waits_for_audio_and_for_itself():
    # The second piece arrives while the first is still worked on; the fourth finds an idle worker.
    finished = latency.computation_aware_clock([320, 640, 960, 9000], [500, 100, 10, 50])
    assert finished.tolist() == [820, 920, 970, 9050]


def test_clock_of_a_worker_faster_than_speech_adds_one_piece_only():
    arrivals = np.arange(1, 65) * 320.0
    assert (latency.computation_aware_clock(arrivals, np.full(64, 100.0)) - arrivals == 100).all()


def test_clock_of_a_worker_slower_than_speech_falls_behind():
    arrivals = np.arange(1, 11) * 320.0
    behind = latency.computation_aware_clock(arrivals, np.full(10, 400.0)) - arrivals
    assert behind.tolist() == [400.0 + 80 * i for i in range(10)]


def test_clock_refuses_nonsense():
    with pytest.raises(ValueError, match=r"at least 0, got -1\.0"):
        latency.computation_aware_clock([1, 2], [0, -1])
    with pytest.raises(ValueError, match="equal lists"):
        latency.computation_aware_clock([1, 2], [0])
    assert len(latency.computation_aware_clock([], [])) == 0


def test_rates():
    assert latency.rtf([100, 300], 1000) == pytest.approx(0.4)
    assert latency.length_ratio(6, 4) == 1.5
    with pytest.raises(ValueError, match="positive"):
        latency.rtf([100], 0)


@pytest.mark.parametrize(("k", "seconds"), [(6, 2.96), (10, 4.24)])
def test_start_lag_of_the_paper(k, seconds):
    assert latency.start_lag(k, step=4) == pytest.approx(seconds * 1000)


def test_paper_counts_first_tokens_and_the_end():
    delays = latency.paper_delays([1, 3, 2], 5000, k=6, step=4)
    assert delays == [2960, 3280, 4240, 4880]
    assert latency.laal_paper([1, 3, 2], 5000, 4, k=6, step=4) == latency.laal(delays, 5000, 4)
    assert latency.paper_delays([1, 3, 2], 4000, k=6, step=4) == [2960, 3280, 4000, 4000]
    with pytest.raises(ValueError, match="less than 0 tokens, got -1"):
        latency.paper_delays([2, -1], 5000, k=6, step=4)


def test_paper_laal_of_an_answer_without_words():
    """The end token alone: the authors' count has one entry."""
    assert latency.laal_paper([], 5000, 4, k=6, step=4) == 2960
