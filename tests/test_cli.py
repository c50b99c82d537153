"""The shell command answers files, and loses nothing when some of them are bad."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from espnet_bestow import __version__
from espnet_bestow.cli import Answer, TextWriter, answer_files, main
from espnet_bestow.errors import BadRowError, rows_named
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


def test_files_that_cannot_be_answered_are_named_and_the_others_answered(tiny_experiment, files, tmp_path):
    s2t = Speech2Text.from_pretrained(tiny_experiment, DecodingOptions(beam_size=1, max_tokens=6))
    good = [files[0], files[3]]
    alone = [s2t(file, PROMPT).text for file in good]
    click, long = str(tmp_path / "click.wav"), str(tmp_path / "long.wav")
    soundfile.write(click, np.full(800, 0.1), 16000)
    soundfile.write(long, np.full(40000, 0.1), 16000)
    answers = s2t.answers

    def without_room(speech, prompts, names):
        with rows_named(names):
            for row, samples in enumerate(speech):
                if len(samples) == 40000:
                    raise BadRowError(row, "no room for an answer")
        return answers(speech, prompts, names)

    s2t.answers = without_room
    found = list(answer_files(s2t, [good[0], click, long, good[1]], PROMPT, 4))
    assert [answer.text for answer in found if answer.error is None] == alone
    assert f"utterance {click!r}: audio of 800 samples (0.050 s) is too short" in found[1].error
    assert found[2].error == f"utterance {long!r}: no room for an answer"


def test_an_answer_of_several_lines_is_one_line():
    out = io.StringIO()
    writer = TextWriter(out, several=True)
    writer.add(Answer("a.wav", "first\nsecond  third"))
    assert out.getvalue() == "a.wav\tfirst second third\n"


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
