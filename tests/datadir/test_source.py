import re
import shlex

import numpy as np
import pytest

from espnet_bestow.audio import AudioError, Span, read_audio
from espnet_bestow.datadir import AudioSource, SourceReader, read_source
from tests.datadir.helpers import counting_pipe, lines, write_audio


def test_file_and_part_of_a_file(tmp_path):
    path = write_audio(tmp_path / "a.wav", 1.0)
    whole = read_source(AudioSource(str(path)), 16000)
    np.testing.assert_array_equal(whole, read_audio(path))
    part = read_source(AudioSource(str(path), Span(0.5, 0.75)), 16000)
    np.testing.assert_array_equal(part, whole[8000:12000])


def test_pipe_is_run_as_kaldi_does(tmp_path):
    path = write_audio(tmp_path / "a b.wav", 1.0)
    source = AudioSource(f"cat {shlex.quote(str(path))} | cat |")
    assert source.is_pipe
    assert not source.is_whole_file
    np.testing.assert_array_equal(read_source(source, 16000), read_audio(path))
    with pytest.raises(AudioError, match="too long"):
        read_source(source, 16000, max_seconds=0.5)


def test_failing_pipe_names_utterance_command_and_status():
    command = "echo 'no such codec' >&2; exit 3 |"
    with pytest.raises(AudioError) as caught:
        read_source(AudioSource(command), 16000, uid="u1")
    assert str(caught.value) == (f"utterance 'u1': {command}: pipe failed (exit status 3: no such codec)")


def test_pipe_that_writes_no_audio():
    with pytest.raises(AudioError, match="not an audio file"):
        read_source(AudioSource("echo hello |"), 16000, uid="u1")


def test_a_reader_keeps_the_output_of_the_last_pipe_only(tmp_path):
    pipe, runs = counting_pipe(tmp_path, f"cat {write_audio(tmp_path / 'a.wav', 1.0)}")
    first, second = AudioSource(pipe, Span(0.0, 0.5)), AudioSource(pipe, Span(0.5))
    reader = SourceReader()
    parts = [reader.read(each, 16000) for each in (first, second)]
    np.testing.assert_array_equal(np.concatenate(parts), read_audio(tmp_path / "a.wav"))
    assert lines(runs) == ["run"]
    for uid in ("u1", "u2"):
        with pytest.raises(AudioError, match=re.escape(f"utterance '{uid}': false |: pipe failed")):
            reader.read(AudioSource("false |"), 16000, uid=uid)
    reader.read(first, 16000)
    assert lines(runs) == ["run", "run"]
