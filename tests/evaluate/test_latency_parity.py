"""Our latency scores are those of SimulEval, OmniSTEval and simulstream, to three decimals, on 300 random logs."""

import json
from statistics import mean

import pytest

from espnet_bestow.evaluate.latency import METRICS
from espnet_bestow.evaluate.latency_scoring import score_latency, utterance_latency
from espnet_bestow.evaluate.longform import score_longform
from tests.evaluate import latency_oracles as oracles
from tests.evaluate.random_logs import LOGS, chunk_log, long_log, short_logs

CLOSE = {"abs": 6e-4}  # numbers of the file are rounded


@pytest.fixture(scope="module")
def golden():
    return json.loads(oracles.GOLDEN.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def logs():
    return short_logs()


def ours(instance, attribute):
    times, length, words = getattr(instance, attribute), instance.source_length, instance.reference_length("word")
    return [METRICS[name](times, length, words) for name in oracles.SHORT]


@pytest.mark.parametrize("attribute", ["delays", "elapsed"])
def test_utterances_score_as_in_simuleval_and_omnisteval(golden, logs, attribute):
    assert len(golden["short"][attribute]) == len(logs) == LOGS
    for instance, expected in zip(logs, golden["short"][attribute], strict=True):
        assert ours(instance, attribute) == pytest.approx(expected, **CLOSE), instance.index


def test_the_random_logs_reach_every_branch(golden, logs):
    assert any(row[-1] is None for row in golden["short"]["delays"])  # nothing written in time
    assert any(i.delays[0] > i.source_length for i in logs)
    assert any(row[1] < 0 for row in golden["short"]["delays"])  # ahead of an even writer
    assert any(row[0] != row[1] for row in golden["short"]["delays"])  # longer than the reference


def test_corpus_scores_are_their_means(golden, logs):
    report = score_latency(logs, resamples=2)
    for suffix, rows in (("", golden["short"]["delays"]), ("_elapsed", golden["short"]["elapsed"])):
        for column, name in enumerate(oracles.SHORT):
            known = [row[column] for row in rows if row[column] is not None]
            assert report.value(name + suffix) == pytest.approx(mean(known), **CLOSE)
            assert report.scores[name + suffix].n == len(known)
    in_time, expected = golden["words_in_time"]
    assert report.value("words_in_time") == pytest.approx(in_time, **CLOSE)
    assert report.value("words_in_time_expected") == pytest.approx(expected, **CLOSE)


def long_values(index):
    values = score_longform(*long_log(index)).values
    return {name: [values[m + suffix] for m in oracles.LONG] for name, suffix in (("delays", ""), ("clock", "_ca"))}


def test_long_recordings_score_as_in_omnisteval(golden):
    assert len(golden["long"]["delays"]) == LOGS
    for index in range(LOGS):
        for name, values in long_values(index).items():
            assert values == pytest.approx(golden["long"][name][index], **CLOSE), index


def chunk_values(index):
    recording, join = chunk_log(index)
    instance = recording.instance(0, "x", join=join)
    return instance.prediction, list(instance.delays)


def test_chunk_logs_read_as_in_simulstream(golden):
    for index, (text, delays) in zip(range(0, LOGS, 10), golden["chunks"], strict=True):
        assert chunk_values(index) == (text, pytest.approx(delays, **CLOSE)), index


def test_live_simuleval(logs):
    pytest.importorskip("simuleval.evaluator.scorers.latency_scorer", reason="simuleval is not installed")
    for instance in logs:
        for attribute, aware in (("delays", False), ("elapsed", True)):
            expected = oracles.simuleval_scores(instance, aware)
            assert ours(instance, attribute)[: len(expected)] == pytest.approx(expected, abs=1e-6)


def test_live_simuleval_reads_the_clock_of_our_logs(logs):
    """Where SimulEval did not run itself, its computation-aware scores are those of the true clock."""
    pytest.importorskip("simuleval.evaluator.scorers.latency_scorer", reason="simuleval is not installed")
    for instance in map(oracles.as_clock, logs[:20]):
        laal = oracles.simuleval_scores(instance, True)[1]
        assert utterance_latency(instance)["laal_ca"] == pytest.approx(laal, abs=1e-6)


def test_live_omnisteval(logs):
    pytest.importorskip("omnisteval.scoring", reason="OmniSTEval is not installed")
    for attribute, aware in (("delays", False), ("elapsed", True)):
        expected = oracles.omnisteval_yaal(logs, aware)
        assert [ours(i, attribute)[-1] for i in logs] == pytest.approx(expected, abs=1e-6)
    for index in range(60):
        expected = oracles.omnisteval_long(*long_log(index))
        for name, values in long_values(index).items():
            assert values == pytest.approx(expected[name], abs=1e-6)


def test_live_simulstream():
    pytest.importorskip("simulstream.metrics.readers", reason="simulstream is not installed")
    for index in range(LOGS):
        text, delays = oracles.simulstream_units(*chunk_log(index))
        assert chunk_values(index) == (text, pytest.approx(delays, abs=1e-6))
