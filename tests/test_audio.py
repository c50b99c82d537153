"""Reading audio: every bad input of the issue gets one line naming utterance, file and value."""

import numpy as np
import pytest
import soundfile

from espnet_bestow.audio import AudioError, Span, audio_info, audio_pieces, mono, read_audio, resample


def tone(seconds: float, rate: int, frequency: float = 440.0) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(1.0, 16000), 16000)
    return path


def refusal(path, **options) -> AudioError:
    """The error of a file, checked to be one line that names utterance and file."""
    with pytest.raises(AudioError) as caught:
        read_audio(path, uid="utt7", **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "utt7" in message
    assert str(path) in message
    assert caught.value.value in message
    return caught.value


def test_samples_come_back_unchanged(wav):
    samples = read_audio(wav)
    assert samples.dtype == np.float32
    assert samples.shape == (16000,)
    # 16 bit quantisation is all that happened.
    np.testing.assert_allclose(samples, tone(1.0, 16000), atol=1 / 32768)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, rate):
    path = tmp_path / "tone.flac"
    soundfile.write(path, tone(1.0, rate), rate)
    samples = read_audio(path)
    assert len(samples) == 16000
    inside = slice(800, -800)
    np.testing.assert_allclose(samples[inside], tone(1.0, 16000)[inside], atol=2e-3)


def test_stereo_is_averaged(tmp_path):
    path = tmp_path / "stereo.wav"
    left, right = tone(0.5, 16000, 300), tone(0.5, 16000, 900)
    soundfile.write(path, np.stack([left, right], axis=1), 16000)
    np.testing.assert_allclose(read_audio(path), (left + right) / 2, atol=1 / 32768)
    assert audio_info(path).channels == 2


def test_header_tells_length_without_decoding(wav):
    info = audio_info(wav)
    assert (info.rate, info.channels, info.frames, info.seconds) == (16000, 1, 16000, 1.0)


def test_span_reads_a_part(wav):
    part = read_audio(wav, span=Span(0.25, 0.5))
    np.testing.assert_array_equal(part, read_audio(wav)[4000:8000])
    np.testing.assert_array_equal(read_audio(wav, span=Span(0.75)), read_audio(wav)[12000:])


@pytest.mark.parametrize("span", [Span(0.5, 1.5), Span(0.5, 0.5), Span(2.0), Span(-0.5, 0.5)])
def test_span_outside_of_the_recording(wav, span):
    assert refusal(wav, span=span).problem == "segment outside of its recording"


def test_missing_file(tmp_path):
    assert refusal(tmp_path / "none.wav").problem == "missing file"


def test_directory_is_not_audio(tmp_path):
    assert refusal(tmp_path).problem == "not an audio file"


@pytest.mark.parametrize("content", [b"", b"<html>404 Not Found</html>" * 50])
def test_not_audio(tmp_path, content):
    path = tmp_path / "page.wav"
    path.write_bytes(content)
    error = refusal(path)
    assert error.problem == "not an audio file"
    assert f"{len(content)} bytes" in error.value


@pytest.mark.parametrize("name", ["cut.wav", "cut.flac", "cut.aiff"])
def test_truncated_file(tmp_path, name):
    path = tmp_path / name
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    soundfile.write(path, noise, 16000)
    path.write_bytes(path.read_bytes()[:15000])
    assert refusal(path).problem == "truncated file"


@pytest.mark.parametrize("name", ["talk.wav", "talk.flac", "talk.mp3"])
def test_pieces_are_the_whole_file_and_a_cut_is_told(tmp_path, name):
    path = tmp_path / name
    noise = np.random.default_rng(0).normal(0, 0.1, (32000, 2))
    soundfile.write(path, noise, 16000)
    pieces = list(audio_pieces(path, 0.1))
    assert {rate for _, rate in pieces} == {16000} and {len(piece) for piece, _ in pieces[:-1]} == {1600}
    np.testing.assert_allclose(np.concatenate([p for p, _ in pieces]).mean(1), read_audio(path), atol=1e-6)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    come = []
    with pytest.raises(AudioError, match=f"utterance 'utt7': .*{name}: truncated file"):
        come += audio_pieces(path, 0.1, "utt7")
    assert sum(len(piece) for piece, _ in come) < 32000


def test_a_flac_that_does_not_know_its_length(tmp_path):
    """As encoders leave it that write into a pipe: 36 bits of its header are 0."""
    path = tmp_path / "piped.flac"
    soundfile.write(path, tone(1.0, 16000), 16000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(bytes(content))
    error = refusal(path)
    assert error.problem == "its header does not say how long it is"
    assert refusal(path, max_seconds=10).problem == error.problem
    with pytest.raises(AudioError, match="does not say how long"):
        list(audio_pieces(path, 0.1))


def test_wav_cut_in_its_header(tmp_path, wav):
    path = tmp_path / "head.wav"
    path.write_bytes(wav.read_bytes()[:30])
    assert refusal(path).problem in ("not an audio file", "truncated file", "zero samples")


def test_streamed_wav_with_unknown_length_is_whole(tmp_path, wav):
    content = bytearray(wav.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path = tmp_path / "streamed.wav"
    path.write_bytes(bytes(content))
    np.testing.assert_array_equal(read_audio(path), read_audio(wav))


def test_zero_samples(tmp_path):
    path = tmp_path / "empty.wav"
    soundfile.write(path, np.zeros(0), 16000)
    assert refusal(path).problem == "zero samples"
    with pytest.raises(AudioError, match="zero samples"):
        audio_info(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers(tmp_path, bad):
    path = tmp_path / "bad.wav"
    samples = tone(0.1, 16000)
    samples[[3, 5]] = bad
    soundfile.write(path, samples, 16000, subtype="FLOAT")
    error = refusal(path)
    assert error.problem == "NaN or infinite samples"
    assert error.value == "2 of 1600 samples"


def test_hour_long_file_is_refused_by_its_header(tmp_path):
    path = tmp_path / "hour.wav"
    header = tmp_path / "short.wav"
    soundfile.write(header, np.zeros(8), 16000)
    content = bytearray(header.read_bytes()[:44])
    size = 3600 * 16000 * 2
    content[4:8], content[40:44] = (size + 36).to_bytes(4, "little"), size.to_bytes(4, "little")
    with path.open("wb") as out:
        out.write(content)
        # A hole: an hour on paper that no decoder could read in time if it tried to convert it.
        out.truncate(44 + size)
    error = refusal(path, max_seconds=600)
    assert error.problem == "too long"
    assert error.value == "3600.0 s, limit 600 s"
    # A part of it is welcome.
    assert len(read_audio(path, max_seconds=600, span=Span(3599.0))) == 16000


def test_long_file_is_never_decoded(tmp_path, monkeypatch):
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros(16000 * 20), 16000)

    def no_decoding(*_args, **_options):
        raise AssertionError("decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", no_decoding)
    assert refusal(path, max_seconds=10).problem == "too long"


def test_resample_keeps_what_needs_no_change():
    samples = tone(0.1, 16000)
    assert resample(samples, 16000, 16000) is samples


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.float64, np.float32])
def test_samples_of_any_width_and_channels_are_the_same_audio(kind):
    wave = 0.25 * np.round(4 * tone(0.01, 16000))  # in quarters, which every kind has
    scale = 1 if np.issubdtype(kind, np.floating) else -float(np.iinfo(kind).min)
    stereo = np.stack([0.5 * wave, 1.5 * wave], 1)  # up to 0.75
    for samples in ((wave * scale).astype(kind), (stereo * scale).astype(kind)):
        found = mono(samples, "samples")
        assert found.dtype == np.float32 and np.array_equal(found, wave)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(3, np.uint8), "samples of x are of type uint8; float or signed integer PCM is needed"),
        (np.zeros((2, 100)), r"samples of x have shape \(2, 100\); \(S,\) or \(S, channels\) is needed"),
        (np.array([0.0, np.inf]), "samples of x are NaN or infinite: 1 of 2"),
    ],
)
def test_samples_that_are_no_audio_are_named(samples, message):
    with pytest.raises(ValueError, match=message):
        mono(samples, "samples of x")
