from dataclasses import replace
from statistics import mean

import pytest

from espnet_bestow.evaluate import latency
from espnet_bestow.evaluate.instances import Instance
from espnet_bestow.evaluate.latency_scoring import score_latency, utterance_latency, write_details

ONE = Instance(
    0, "a b c", (500.0, 1500.0, 2000.0), "a b c d", 2000.0, source="/x/one.wav", clock=(510.0, 1600.0, 2300.0)
)
TWO = replace(ONE, index=1, prediction="a b", delays=(400.0, 900.0), clock=(400.0, 990.0), source="/x/two.wav")
SILENT = Instance(2, "", (), "a b", 1500.0)


def test_means_are_over_utterances_that_wrote_something():
    report = score_latency([ONE, TWO, SILENT])
    assert (report.utterances, report.empty) == (3, 1)
    expected = mean([latency.laal(i.delays, 2000, 4) for i in (ONE, TWO)])
    assert report.value("laal") == pytest.approx(expected)
    assert report.scores["laal"].n == 2
    assert report.values()["laal"] == report.value("laal")
    assert report.value("length_ratio") == pytest.approx(5 / 10)  # here the empty one counts


def test_clocks_keep_their_own_columns():
    report = score_latency([ONE, TWO])
    assert report.value("laal_ca") == pytest.approx(mean(latency.laal(i.clock, 2000, 4) for i in (ONE, TWO)))
    assert report.value("laal_elapsed") is None
    with_elapsed = [replace(i, elapsed=tuple(t + 1000 for t in i.clock)) for i in (ONE, TWO)]
    assert score_latency(with_elapsed).value("start_offset_elapsed") == pytest.approx(1455)
    assert score_latency(with_elapsed).value("start_offset_ca") == pytest.approx(455)


def test_half_of_a_clock_is_an_error():
    with pytest.raises(ValueError, match=r"1 instances have no clock, others have \(first: 1\)"):
        score_latency([ONE, replace(TWO, clock=()), SILENT])


def test_rtf_is_known_only_if_all_were_timed():
    timed = [replace(ONE, compute=100.0), replace(TWO, compute=300.0)]
    assert score_latency(timed).value("rtf") == pytest.approx(400 / 4000)
    assert score_latency([timed[0], TWO]).value("rtf") is None


def test_the_papers_count_stands_apart():
    paper = replace(ONE, extra={"paper_delays": latency.paper_delays([1, 1, 1], 2000, k=1, step=2)})
    scores = utterance_latency(paper)
    assert scores["laal_paper"] == latency.laal_paper([1, 1, 1], 2000, 4, k=1, step=2)
    assert scores["laal"] == utterance_latency(ONE)["laal"]


def test_interval_holds_the_mean_and_depends_on_the_data():
    score = score_latency([ONE, TWO]).scores["laal"]
    assert score.low < score.value < score.high
    same = score_latency([ONE, replace(ONE, index=1)]).scores["laal"]
    assert same.low == pytest.approx(same.high)


def test_nothing_but_silence_is_defined():
    report = score_latency([SILENT, replace(SILENT, index=3)])
    assert (report.empty, report.value("laal"), report.degenerate) == (2, None, False)
    assert report.value("length_ratio") == 0
    with pytest.raises(ValueError, match="no instance"):
        score_latency([])


def test_a_system_that_writes_at_the_end_is_degenerate():
    late = replace(ONE, prediction="a b c d", delays=(100.0, 2000.0, 2000.0, 2000.0), clock=())
    assert score_latency([late]).degenerate
    even = replace(ONE, prediction="a b c d", delays=(500.0, 1000.0, 1500.0, 2000.0), clock=())
    report = score_latency([even])
    assert report.value("words_in_time") == 75
    assert report.value("words_in_time_expected") == 75
    assert not report.degenerate


def test_errors_name_the_instance():
    with pytest.raises(ValueError, match="instance 7: delays must be finite"):
        score_latency([replace(ONE, index=7, extra={"paper_delays": [float("inf")]})])


def test_details_have_a_line_per_utterance(tmp_path):
    write_details(tmp_path / "details.tsv", [ONE, TWO, SILENT])
    header, *lines = [line.split("\t") for line in (tmp_path / "details.tsv").read_text().splitlines()]
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["recording"] for row in rows] == ["one", "two", ""]
    assert [row["units"] for row in rows] == ["3", "2", "0"]
    assert float(rows[1]["start_offset"]) == 400
    assert rows[2]["laal"] == ""
