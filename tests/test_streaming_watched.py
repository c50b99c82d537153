"""Watching a session changes nothing and keeps what its tokens looked at."""

from copy import copy
from dataclasses import replace

import numpy as np
import pytest

from espnet_bestow.evaluate.read_write_plot import plot_read_write
from espnet_bestow.simul.simulator import token_counts
from espnet_bestow.streaming.policies import build_policy
from espnet_bestow.streaming.pool import Pool
from espnet_bestow.streaming.watched import Watched, tokens_of
from tests.llm_fixtures import write_llm
from tests.streaming_fixtures import FREE, HOP, PROMPT, RATE, listener_of, loud_model, plain, run, talk, template_of

TALK = talk(0.5)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    llm = write_llm(tmp_path_factory.mktemp("llm"))
    model = loud_model(llm)
    return Pool(model, listener_of(model), template_of(llm))


def trace_of(watched, words):
    first = [word for word in words if word.segment == 0]
    pieces = [str(token) for token in tokens_of(first)]
    return watched.trace(first, pieces, len(TALK) / RATE, HOP / RATE, [])


@pytest.mark.parametrize(
    ("name", "options"), [("wait_k", {"k": 2, "step": 2}), ("align_att", {"threshold": 4, "step": 2})]
)
def test_watching_changes_nothing_and_sees_all(pool, name, options, tmp_path):
    alone = run(pool.open(PROMPT, build_policy(name, **options), FREE), TALK, 1280)
    watched = Watched(build_policy(name, **options))
    words = run(pool.open(PROMPT, watched, FREE), TALK, 1280)
    assert plain(words) == plain(alone)
    trace = trace_of(watched, words)
    assert trace.frames == len(TALK) // HOP
    assert len(trace.tokens) > 3 and len(set(trace.visible)) > 1
    for row, visible in zip(trace.attention, trace.visible, strict=True):
        assert row.sum() == pytest.approx(1, abs=1e-4)
        assert not row[visible:].any()
    assert plot_read_write(trace, tmp_path / "trace.png").stat().st_size > 5000


def test_a_word_has_the_times_of_its_last_token(pool):
    watched = Watched(build_policy("wait_k", k=2, step=2))
    words = run(pool.open(PROMPT, watched, FREE), TALK, 1280)
    trace = trace_of(watched, words)
    ends = np.cumsum([len(word.tokens) for word in words if word.segment == 0]) - 1
    assert np.flatnonzero(~np.isnan(trace.consumed)).tolist() == ends.tolist()
    assert np.array(trace.emitted)[ends].tolist() == [word.emitted for word in words if word.segment == 0]


def test_words_that_share_a_token(pool):
    """As characters do, wherever a token has more than one: they are the text, and the token is counted once."""
    template = copy(pool.template)
    template.decode = lambda ids: "你好" * len(ids)
    watched = Watched(build_policy("wait_k", k=2, step=2))
    words = run(Pool(pool.model, pool.listener, template).open(PROMPT, watched, FREE), TALK, 1280)
    ids = tokens_of(words)
    assert len(words) == 2 * len(ids) > 4
    assert "".join(word.before + word.text for word in words) == "你好" * len(ids)
    assert token_counts(words) == [0, 1] * len(ids)
    trace = trace_of(watched, words)
    assert len(trace.visible) == len(trace.attention) == len(trace.consumed) == len(ids)
    assert not np.isnan(trace.emitted).any()


def test_what_cannot_be_drawn_is_refused(pool):
    with pytest.raises(ValueError, match="HoldN writes drafts"):
        Watched(build_policy("hold_n"))
    watched = Watched(build_policy("wait_k", k=2, step=2))
    words = [replace(w, segment=2) for w in run(pool.open(PROMPT, watched, FREE), TALK, 1280)]
    with pytest.raises(ValueError, match="one segment, the session had 3"):
        watched.trace(words, [], 1.0, 0.1, [])
