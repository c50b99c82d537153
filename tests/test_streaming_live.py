"""``bestow stream`` and ``Speech2Text.stream``: files, pipes, models whose encoders hear in other ways."""

import io
import json
import os
import sys
import time

import numpy as np
import pytest
import soundfile

from espnet_bestow.audio import audio_pieces
from espnet_bestow.cli import main
from espnet_bestow.inference import DecodingOptions, Speech2Text
from espnet_bestow.streaming.listener import BeginningsListener
from espnet_bestow.streaming.live import in_real_time, raw_chunks
from espnet_bestow.streaming.session import SessionOptions

POLICY = "wait_k:k=2,step=4"
PROMPT = "transcribe the english speech"


@pytest.fixture(scope="module")
def s2t(vivid_experiment):
    return Speech2Text.from_pretrained(vivid_experiment, DecodingOptions(beam_size=1, max_tokens=8, circles=()))


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Speech-like noise at 8 kHz, as a file and as the bytes of its PCM."""
    samples = (np.random.default_rng(0).standard_normal(16000) * 3000).astype("<i2")
    path = tmp_path_factory.mktemp("audio") / "talk.wav"
    soundfile.write(path, samples, 8000, subtype="PCM_16")
    return path, samples


def stream(model, file, *more):
    options = ["--policy", POLICY, "--prompt", PROMPT, "--max_tokens", "8", "--segment_silence", "0"]
    return ["stream", str(file), "--model", str(model), "--speed", "fast", *options, *more]


def test_a_file_streamed_by_the_command_is_what_a_session_says(vivid_experiment, s2t, audio, capsys):
    path, samples = audio
    assert main(stream(vivid_experiment, path, "--format", "jsonl")) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    session = s2t.stream(PROMPT, "wait_k", SessionOptions(8, max_seconds=60.0), k=2, step=4)
    words = [*session.push(samples, 8000), *session.finish()]
    assert words and [w["text"] for w in found] == [w.text for w in words]
    assert [tuple(w["tokens"]) for w in found] == [w.tokens for w in words]
    assert main(stream(vivid_experiment, path, "--format", "text")) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", " ").split() == [w.text for w in words]
    assert main(stream(vivid_experiment, path)) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["from", "to", "written", "word"]
    assert [line.split()[-1] for line in lines] == [w.text for w in words]


def test_raw_pcm_through_a_real_pipe(vivid_experiment, audio, capsys, monkeypatch):
    path, samples = audio
    assert main(stream(vivid_experiment, path, "--format", "text")) == 0
    expected = capsys.readouterr().out
    reader, writer = os.pipe()
    assert os.write(writer, samples.tobytes()) == 2 * len(samples)  # less than a pipe holds
    os.close(writer)
    with os.fdopen(reader) as pipe:
        monkeypatch.setattr(sys, "stdin", pipe)
        assert main(stream(vivid_experiment, "-", "--format", "text", "--rate", "8000")) == 0
    assert capsys.readouterr().out == expected


def test_pieces_of_files_and_pipes(audio):
    path, samples = audio
    pieces = list(audio_pieces(path, 0.25))
    assert [len(piece) for piece, _ in pieces] == [2000] * 8 and {rate for _, rate in pieces} == {8000}
    np.testing.assert_allclose(np.concatenate([p for p, _ in pieces])[:, 0], samples / 32768, atol=1e-6)
    stereo = np.stack([samples, -samples], 1)
    again = np.concatenate([p for p, _ in raw_chunks(io.BytesIO(stereo.tobytes()), 8000, 2, 0.1)])
    assert np.array_equal(again, stereo)
    with pytest.raises(ValueError, match="within a sample: 1 of 2 bytes"):
        list(raw_chunks(io.BytesIO(samples.tobytes()[:-1]), 8000, 1, 0.1))


def test_real_time_is_not_before_its_time():
    started = time.monotonic()
    for number, _ in enumerate(in_real_time(iter([(np.zeros(80), 8000)] * 5)), 1):
        assert time.monotonic() - started >= 0.01 * number - 1e-3


def test_the_offline_policy_says_what_offline_decoding_says(s2t, audio):
    path, _ = audio
    session = s2t.stream(PROMPT, "offline", SessionOptions(max_tokens=8, circles=()))
    words = [word for chunk, rate in audio_pieces(path, 0.3) for word in session.push(chunk, rate)]
    words += session.finish()
    assert "".join(w.before + w.text for w in words) == s2t(str(path), PROMPT).text


def test_the_hop_is_measured_and_options_must_fit_the_encoder(s2t):
    listener = s2t.listener()
    assert isinstance(listener, BeginningsListener)
    assert (listener.hop, listener.right_context, listener.shortest) == (640, 13, 1600)  # conv2d: 40 ms
    assert s2t.listener(right_context=2).needed(5) == 7 * 640
    with pytest.raises(ValueError, match=r"context=\(70, 6\): TransformerEncoder is not cache-aware"):
        s2t.listener(context=(70, 6))
    with pytest.raises(ValueError, match=r"policy_options \['k'\] belong to a policy"):
        s2t.stream(PROMPT, s2t.stream(PROMPT, listener=listener).policy, listener=listener, k=3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "wait_q"], "policy='wait_q' is not known"),
        (["--policy", "wait_k:k"], "is not <name> or <name>:<option>=<value>"),
        (["--prompt", "x" * 5000], "leaves no room for an answer"),
        (["--right_context", "-1"], "right_context=-1 must be >= 0"),
    ],
)
def test_bad_options_are_one_line(vivid_experiment, audio, capsys, more, message):
    assert main(stream(vivid_experiment, audio[0], *more)) == 2
    assert message in capsys.readouterr().err


def test_bad_files_are_one_line(vivid_experiment, tmp_path, capsys):
    assert main(stream(vivid_experiment, tmp_path / "missing.wav")) == 2
    assert "missing.wav: missing file" in capsys.readouterr().err
