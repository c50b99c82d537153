"""What benchmarks say of options that make no sense, and where there is nothing to measure: one line each."""

import sys
from collections.abc import Callable

import pytest

from benchmarks import (
    bench_builds,
    bench_depthwise,
    bench_few_rows,
    bench_long_stream,
    bench_sessions,
    bench_silence,
    bench_staircase,
    bench_token,
    bench_training_step,
)
from espnet_bestow import ops
from tests.datadir.helpers import write_files


def ends_of(main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, *words: object) -> str | int | None:
    """With what a program ends: status 0 and 2 are argparse's, text is a line of ours."""
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


@pytest.mark.parametrize(
    ("program", "options", "what"),
    [
        (bench_sessions, ["--sessions", "0"], "argument --sessions: '0' is not an integer of at least 1"),
        (bench_sessions, ["--rounds", "0"], "argument --rounds: '0' is not an integer of at least 1"),
        (bench_sessions, ["--chunk", "0"], "argument --chunk: '0' is not a number above 0"),
        (bench_sessions, ["--seconds", "nan"], "argument --seconds: 'nan' is not a number above 0"),
        (bench_long_stream, ["--minutes", "0"], "argument --minutes: '0' is not an integer of at least 1"),
        (bench_silence, ["--max_rows", "0"], "argument --max_rows: '0' is not an integer of at least 1"),
    ],
)
def test_nothing_to_measure(monkeypatch, capsys, program, options, what):
    assert ends_of(program.main, monkeypatch, *options) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"bench: error: {what}"


@pytest.mark.parametrize("program", [bench_sessions, bench_long_stream, bench_silence])
def test_no_such_model(monkeypatch, tmp_path, program):
    rows = write_files(tmp_path / "data", wav_scp="u1 u1.wav\n", text="u1 one\n")
    data = [] if program is bench_sessions else ["--data_dir", rows]
    line = ends_of(program.main, monkeypatch, "--model", tmp_path, *data)
    assert line == f"error: model '{tmp_path}' has no config.yaml; is it the output_dir of a training?"


def test_a_list_without_recordings(tmp_path):
    (tmp_path / "wav.scp").write_text("")
    with pytest.raises(ValueError, match=r"wav.scp: no recordings"):
        bench_sessions.recordings(tmp_path / "wav.scp", 2, 16000, 1.0)


@pytest.mark.parametrize("program", [bench_long_stream, bench_silence])
def test_no_such_data(monkeypatch, tmp_path, program):
    line = ends_of(program.main, monkeypatch, "--model", tmp_path, "--data_dir", tmp_path / "none")
    assert line == f"error: {tmp_path}/none: no such data directory"


@pytest.mark.parametrize(
    "program", [bench_builds, bench_depthwise, bench_few_rows, bench_staircase, bench_token, bench_training_step]
)
def test_kernels_that_are_not_built(monkeypatch, program):
    monkeypatch.setattr(ops, "native", None)
    commits = ["HEAD", "HEAD"] if program is bench_builds else []
    assert str(ends_of(program.main, monkeypatch, *commits)).startswith("error: the compiled kernels are not built")
    assert ends_of(program.main, monkeypatch, "--help") == 0
