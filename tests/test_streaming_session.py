"""Sessions: what is said depends on the audio and the policy, not on how the audio came or who else listens."""

import numpy as np
import pytest
import torch

from espnet_bestow.audio import read_audio
from espnet_bestow.inference import Speech2Text
from espnet_bestow.streaming.policies import build_policy
from espnet_bestow.streaming.pool import Pool
from espnet_bestow.streaming.session import SessionOptions
from espnet_bestow.visibility import answer_index

RATE = 16000
POLICIES = {
    "wait_k": {"k": 2, "step": 2},
    "align_att": {"threshold": 3, "step": 3},
    "ed_att": {"alpha": 0.2, "newest": 4, "step": 3},
    "local_agreement": {"n": 2, "step": 5},
    "hold_n": {"n": 2, "step": 5},
    "offline": {},
}
FREE = SessionOptions(max_tokens=12, circles=())
CUTS = {"10 ms": 160, "80 ms": 1280, "320 ms": 5120, "1.7 s": 27200, "whole": 1 << 20}


@pytest.fixture(scope="module")
def s2t(vivid_experiment):
    return Speech2Text.from_pretrained(vivid_experiment)


@pytest.fixture(scope="module")
def listener(s2t):
    return s2t.listener(right_context=4)


@pytest.fixture(scope="module")
def talks(tiny):
    """Two recordings, long enough for a few steps."""
    audio = [read_audio(file) for file in sorted((tiny.root / "data" / "audio" / "train").glob("*.flac"))]
    return [np.concatenate(audio[i : i + 2]) for i in (0, 2)]


def run(session, talk, size, rate=None):
    words = []
    for begin in range(0, len(talk), size):
        words += session.push(talk[begin : begin + size], rate)
    words += session.finish()
    session.close()
    return words


def plain(words):
    """All that must not depend on the clock."""
    return [(w.text, round(w.seen, 6), w.span, w.tokens, w.visible, w.before) for w in words]


def test_measured_hop(listener):
    assert listener.hop == 640  # conv2d: a quarter of 100 frames per second


@pytest.mark.parametrize("name", POLICIES)
def test_words_do_not_depend_on_how_the_audio_is_cut(s2t, listener, talks, name):
    pool = s2t.pool(listener)
    policy = build_policy(name, **POLICIES[name])
    found = {cut: plain(run(pool.open("name the melody", policy, FREE), talks[0], size)) for cut, size in CUTS.items()}
    assert found["whole"]
    for cut in CUTS:
        assert found[cut] == found["whole"], cut
    assert not pool.sessions and not pool.state.seats.lengths
