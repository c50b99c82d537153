"""The shell command answers files, and loses nothing when some of them are bad."""

import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from espnet_bestow import __version__
from espnet_bestow.cli import main
from espnet_bestow.inference import DecodingOptions, Speech2Text
from tests.tiny_training import environment

FAST = ["--beam_size", "1", "--max_tokens", "6"]
PROMPT = "transcribe the english speech"


@pytest.fixture
def files(tmp_path):
    """Two good files of other rates and channel counts, and three bad ones between them."""
    noise = np.random.default_rng(0)
    soundfile.write(tmp_path / "a.flac", noise.standard_normal(8000) * 0.1, 8000)
    soundfile.write(tmp_path / "b.wav", noise.standard_normal((44100, 2)) * 0.1, 44100)
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 16000)
    names = ("a.flac", "text.wav", "missing.wav", "b.wav", "empty.wav")
    return [str(tmp_path / name) for name in names]


def run(model, files, *more):
    return main(["transcribe", *files, "--model", str(model), "--prompt", PROMPT, *FAST, *more])


def test_text_of_one_file_is_the_answer_alone(tiny_experiment, files, capsys):
    assert run(tiny_experiment, files[:1]) == 0
    s2t = Speech2Text.from_pretrained(tiny_experiment, DecodingOptions(beam_size=1, max_tokens=6))
    out, _ = capsys.readouterr()
    assert out == s2t(files[0], PROMPT).text + "\n"


@pytest.mark.parametrize("batch_size", ["1", "3"])
def test_bad_files_are_named_and_good_ones_answered(tiny_experiment, files, capsys, batch_size):
    assert run(tiny_experiment, files, "--batch_size", batch_size) == 1
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == [files[0], files[3]]
    lines = [line for line in err.splitlines() if line.startswith("bestow: ")]
    assert [next(f for f in files if f in line) for line in lines] == [files[1], files[2], files[4]]


def test_json_has_an_entry_per_file(tiny_experiment, files, tmp_path):
    output = tmp_path / "new" / "out.json"
    assert run(tiny_experiment, files, "--format", "json", "--output", str(output)) == 1
    entries = json.loads(output.read_text("utf-8"))
    assert [entry["file"] for entry in entries] == files
    assert ["error" in entry for entry in entries] == [False, True, True, False, True]
    assert set(entries[0]) == {"file", "text", "tokens", "score"}
    assert entries[0]["score"] < 0.0


def test_a_model_that_does_not_exist_is_one_line(files, capsys, tmp_path):
    assert run(tmp_path / "no.zip", files[:1]) == 2
    assert capsys.readouterr().err.startswith("bestow: model '")


@pytest.mark.parametrize("option", [["--beam_size", "0"], ["--batch_size", "x"], ["--format", "x"]])
def test_bad_options_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        main(["transcribe", "a.wav", "--model", "m", *option])
    assert option[0] in capsys.readouterr().err


def test_version_and_help_load_nothing_heavy():
    code = (
        "import sys\nfrom espnet_bestow.cli import main\n"
        "try: main([sys.argv[1]])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'espnet2'} & set(sys.modules)"
    )
    for option, expected in (("--version", f"bestow {__version__}"), ("--help", "transcribe")):
        done = subprocess.run([sys.executable, "-c", code, option], env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
