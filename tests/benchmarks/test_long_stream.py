"""The talk that bench_long_stream.py makes of recordings."""

import itertools

import numpy as np
import pytest

from benchmarks.bench_long_stream import Talk
from espnet_bestow.datadir.source import read_source
from espnet_bestow.simul.examples import read_examples

RATE = 16000


@pytest.mark.parametrize("seconds", [1.0, 30.0])
def test_a_talk_is_whole_recordings_with_pauses_and_knows_what_was_said(tiny, seconds):
    examples = read_examples(tiny.data["valid"], ["asr"])
    talk = Talk(examples, RATE, pause=0.25)
    pushes = list(talk.pushes(1000, seconds))
    assert {len(push) for push in pushes[:-1]} == {1000} and len(pushes[-1]) < 1000
    pause = np.zeros(RATE // 4, np.float32)
    spoken = list(itertools.islice(itertools.cycle(examples), len(talk.said)))
    expected = np.concatenate([part for each in spoken for part in (read_source(each.source, RATE), pause)])
    assert np.array_equal(np.concatenate(pushes), expected)
    assert talk.said == [each.reference for each in spoken]
    assert len(expected) >= seconds * RATE > len(expected) - len(read_source(spoken[-1].source, RATE)) - len(pause)
