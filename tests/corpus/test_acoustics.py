import numpy as np
import pytest

from espnet_bestow.corpus.acoustics import Channel, record


def tone(seconds=1.0):
    clock = np.arange(round(16000 * seconds)) / 16000
    return (0.4 * np.sin(2 * np.pi * 440 * clock)).astype(np.float32)


def rng():
    return np.random.default_rng(1)


def test_clean_speech_keeps_its_shape_and_gets_its_level():
    pcm = record(tone(), Channel(snr=None, gain=0.5), rng())
    assert pcm.dtype == np.int16
    assert np.abs(pcm).max() == pytest.approx(0.5 * 32767, abs=1)
    np.testing.assert_allclose(pcm / 32767, tone() * 0.5 / 0.4, atol=2e-4)


@pytest.mark.parametrize("snr", [0, 5, 10, 20])
def test_signal_to_noise_ratio(snr):
    clean = tone().astype(np.float64)
    noisy = record(tone(), Channel(snr=snr, gain=0.9), rng()).astype(np.float64)
    scale = (noisy @ clean) / (clean @ clean)
    noise = noisy - scale * clean
    measured = 10 * np.log10((scale * clean) @ (scale * clean) / (noise @ noise))
    assert measured == pytest.approx(snr, abs=0.3)


def test_same_seed_same_noise():
    channel = Channel(snr=5, gain=0.9)
    assert np.array_equal(record(tone(), channel, rng()), record(tone(), channel, rng()))
    other = record(tone(), channel, np.random.default_rng(2))
    assert not np.array_equal(record(tone(), channel, rng()), other)


def test_silence_is_an_error():
    with pytest.raises(ValueError, match="silent"):
        record(np.zeros(100, dtype=np.float32), Channel(snr=None, gain=0.5), rng())
