"""Long recordings are cut where nobody speaks."""

import numpy as np
import pytest

from espnet_bestow.long_audio import pieces

RATE = 8000


def talk(*seconds, noise=0.0):
    """Speech and pauses by turns, speech first: bursts of noise with gaps of 50 ms, as between syllables."""
    rng = np.random.default_rng(0)
    parts = []
    for number, length in enumerate(seconds):
        part = rng.standard_normal(round(length * RATE)) * (number % 2 == 0)
        for gap in range(0, len(part), RATE // 4):
            part[gap : gap + RATE // 20] = 0.0
        parts.append(part)
    whole = np.concatenate(parts)
    return (0.1 * whole + noise * rng.standard_normal(len(whole))).astype(np.float32)


def places(samples, found):
    """Where pieces begin and end in the whole, in seconds."""
    base = samples.__array_interface__["data"][0]
    begins = [(each.__array_interface__["data"][0] - base) / samples.itemsize / RATE for each in found]
    return [(begin, begin + len(each) / RATE) for begin, each in zip(begins, found, strict=True)]


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_in_pauses_and_not_between_syllables(noise):
    samples = talk(2.0, 0.4, 3.0, 0.3, 1.5, 0.5, 2.5, noise=noise)
    found = places(samples, pieces(samples, RATE, 4.0))
    cuts = [end for _, end in found[:-1]]
    assert len(cuts) == 3
    for cut, (begin, end) in zip(cuts, [(2.0, 2.4), (5.4, 5.7), (7.2, 7.7)], strict=True):
        assert begin + 0.05 <= cut <= end
    assert found[0][0] == 0.0 and found[-1][1] == len(samples) / RATE
    assert [begin for begin, _ in found[1:]] == pytest.approx(cuts)


def test_no_more_often_than_needed():
    samples = talk(2.0, 0.4, 2.0, 0.4, 2.0)
    assert len(pieces(samples, RATE, 6.8)) == 1
    assert len(pieces(samples, RATE, 6.7)) == 2


def test_never_longer_than_allowed_and_all_of_it():
    """Speech without a pause, and a length that is no multiple of anything."""
    samples = talk(20.0)[: 20 * RATE - 77]
    found = pieces(samples, RATE, 3.0)
    assert max(map(len, found)) <= 3 * RATE and min(map(len, found)) >= 0.3 * RATE
    assert np.array_equal(np.concatenate(found), samples)


def test_silence_is_left_out_unless_there_is_nothing_else():
    samples = talk(2.0, 30.0, 2.0)
    found = places(samples, pieces(samples, RATE, 4.0))
    assert len(found) == 2 and found[0][0] == 0.0 and found[-1][1] == 34.0
    silence = np.zeros(10 * RATE, np.float32)
    assert [len(each) for each in pieces(silence, RATE, 4.0)] == [len(silence)]


def test_what_is_short_enough_stays_as_it_is():
    samples = talk(2.0, 0.4, 2.0)
    for longest in (None, 4.4):
        (found,) = pieces(samples, RATE, longest)
        assert found is samples
    with pytest.raises(ValueError, match=r"longest=0\.5 must be at least 1 second"):
        pieces(samples, RATE, 0.5)
