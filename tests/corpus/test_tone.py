import hashlib

import numpy as np
import pytest

from espnet_bestow.corpus.acoustics import to_pcm
from espnet_bestow.corpus.rendering import Delivery
from espnet_bestow.corpus.tone import render

DELIVERY = Delivery("de", "m1", rate=170, pitch=50, pitch_range=50)


def test_bytes_are_golden():
    pcm = to_pcm(render("der große vögel", DELIVERY, seed=7).samples)
    digest = hashlib.sha256(pcm.astype("<i2").tobytes()).hexdigest()
    assert digest == "f8a04b4df658f5519eb2d04c520e20ab397664508bf44067c0cce02057a14d95"


def test_onsets_lie_where_the_sound_starts():
    speech = render("ab cd", DELIVERY, seed=0)
    assert speech.seconds == pytest.approx(5 * 0.06)
    assert [word.start for word in speech.words] == pytest.approx([0.0, 0.18])
    silence = speech.samples[round(0.12 * 16000) : round(0.18 * 16000)]
    assert not silence.any()
    assert np.abs(speech.samples[round(0.18 * 16000) : round(0.2 * 16000)]).max() > 0.2


def test_letters_rates_and_speakers_sound_different():
    assert not np.array_equal(render("a", DELIVERY, 0).samples, render("b", DELIVERY, 0).samples)
    fast = Delivery("de", "m1", rate=340, pitch=50, pitch_range=50)
    assert len(render("a", fast, 0).samples) * 2 == len(render("a", DELIVERY, 0).samples)
    other = Delivery("de", "f1", rate=170, pitch=50, pitch_range=50)
    assert not np.array_equal(render("a", other, 0).samples, render("a", DELIVERY, 0).samples)


def test_an_unknown_letter_is_an_error():
    with pytest.raises(ValueError, match="'7'"):
        render("7", DELIVERY, 0)
