"""Decoding a data directory by the command line: ESPnet's layout, splitting, and one line per error."""

import shutil

import numpy as np
import pytest
import soundfile

from espnet_bestow.audio import read_audio
from espnet_bestow.bin.bestow_inference import main
from espnet_bestow.inference import DecodingOptions, Speech2Text

FAST = ["--beam_size", "1", "--max_tokens", "6", "--num_workers", "0", "--batch_size", "4"]


def arguments(data, model, output_dir, *more):
    out = ["--output_dir", str(output_dir), "--model_tag", str(model)]
    for file, name, kind in (("wav.scp", "speech", "sound"), ("prompt", "prompt", "text")):
        out += ["--data_path_and_name_and_type", f"{data / file},{name},{kind}"]
    return [*out, *FAST, *more]


def decode(data, model, output_dir, *more):
    main(arguments(data, model, output_dir, *more))
    return {name: pairs(output_dir / "1best_recog" / name) for name in ("text", "token", "score")}


def pairs(path):
    lines = path.read_text("utf-8").splitlines()
    return {key: value for key, _, value in (line.partition(" ") for line in lines)}


def keys(path):
    return [line.split()[0] for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def whole(tiny, vivid_experiment, tmp_path_factory):
    return decode(tiny.data["train"], vivid_experiment, tmp_path_factory.mktemp("decode"))


@pytest.fixture
def data(tiny, tmp_path):
    """A data directory to break."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("wav.scp", "prompt"):
        shutil.copy(tiny.data["train"] / name, folder)
    return folder


def replace(data, file, line, value):
    """Changes one line of a file; returns its utterance."""
    lines = (data / file).read_text("utf-8").splitlines()
    uid = lines[line].split()[0]
    lines[line] = f"{uid} {value}"
    (data / file).write_text("\n".join(lines) + "\n")
    return uid


def test_every_utterance_is_answered_in_order(tiny, whole):
    expected = keys(tiny.data["train"] / "wav.scp")
    assert len(expected) > 3
    for name in ("text", "token", "score"):
        assert list(whole[name]) == expected, name
    assert all(float(score) < 0.0 for score in whole["score"].values())
    assert all(0 < len(tokens.split()) <= 6 for tokens in whole["token"].values())
    assert len(set(whole["score"].values())) > 1, "or the comparisons below would say nothing"


def test_the_command_answers_as_python_does(tiny, vivid_experiment, whole):
    s2t = Speech2Text.from_pretrained(vivid_experiment, DecodingOptions(beam_size=1, max_tokens=6))
    prompts = pairs(tiny.data["train"] / "prompt")
    for uid, file in list(pairs(tiny.data["train"] / "wav.scp").items())[::5]:
        text, tokens, score = s2t(file, prompts[uid])
        assert (text, " ".join(tokens)) == (whole["text"][uid], whole["token"][uid])
        assert score == pytest.approx(float(whole["score"][uid]), abs=0.02)


def test_key_files_split_the_work(tiny, vivid_experiment, whole, tmp_path):
    everyone = keys(tiny.data["train"] / "wav.scp")
    union = {name: {} for name in whole}
    for job, part in enumerate((everyone[:2], everyone[2:])):
        (tmp_path / f"keys.{job}").write_text("\n".join(part) + "\n")
        out = decode(
            tiny.data["train"], vivid_experiment, tmp_path / str(job), "--key_file", str(tmp_path / f"keys.{job}")
        )
        assert list(out["text"]) == part
        for name, values in out.items():
            union[name].update(values)
    assert union["text"] == whole["text"] and union["token"] == whole["token"]


def test_config_and_checkpoint_name_the_model_as_well(tiny, vivid_experiment, whole, tmp_path):
    options = arguments(
        tiny.data["train"], "", tmp_path, "--bestow_train_config", str(vivid_experiment / "config.yaml")
    )
    main([*options, "--bestow_model_file", str(vivid_experiment / "latest.pth"), "--num_workers", "1"])
    assert pairs(tmp_path / "1best_recog" / "text") == whole["text"]


def test_without_prompts_the_default_is_used(tiny, vivid_experiment, tmp_path):
    wavs = tiny.data["train"] / "wav.scp"
    main([
        *("--output_dir", str(tmp_path), "--model_tag", str(vivid_experiment), *FAST),
        *("--data_path_and_name_and_type", f"{wavs},speech,sound"),
    ])  # fmt: skip
    s2t = Speech2Text.from_pretrained(vivid_experiment, DecodingOptions(beam_size=1, max_tokens=6))
    uid, file = next(iter(pairs(wavs).items()))
    assert pairs(tmp_path / "1best_recog" / "text")[uid] == s2t(file).text


def test_beam_and_sampling_options_reach_the_search(tiny, vivid_experiment, whole, tmp_path):
    train = tiny.data["train"]
    beam = decode(train, vivid_experiment, tmp_path / "beam", "--beam_size", "4", "--length_penalty", "0")
    sampling = ["--sampling", "true", "--temperature", "2.0", "--top_k", "50", "--top_p", "0.95", "--seed"]
    draws = [decode(train, vivid_experiment, tmp_path / f"{n}", *sampling, s) for n, s in enumerate("334")]
    assert draws[0] == draws[1] != draws[2]
    assert beam["score"] != whole["score"] and beam["score"] != draws[0]["score"]
    coldest = decode(train, vivid_experiment, tmp_path / "cold", "--sampling", "true", "--top_k", "1")
    assert coldest["token"] == whole["token"], "the one most probable token is greedy"


def test_long_recordings_are_cut(tiny, data, vivid_experiment, whole, tmp_path, capsys):
    train, files = tiny.data["train"], list(pairs(data / "wav.scp").values())
    samples = np.concatenate([np.pad(read_audio(file, 16000), (0, 8000)) for file in files[:3]])
    soundfile.write(tmp_path / "long.wav", samples, 16000, subtype="FLOAT")
    uid = replace(data, "wav.scp", 0, tmp_path / "long.wav")
    out = decode(data, vivid_experiment, tmp_path / "out", "--longest", "1.5")
    assert {key for key in out["text"] if out["token"][key] != whole["token"][key]} <= {uid}
    uncut = decode(data, vivid_experiment, tmp_path / "uncut")
    assert len(out["token"][uid].split()) > len(uncut["token"][uid].split())
    with pytest.raises(SystemExit):
        main(arguments(train, vivid_experiment, tmp_path / "out", "--longest", "0.2"))
    assert "'0.2' is not a number of seconds from 1 on" in capsys.readouterr().err


def test_other_rates_channels_and_pipes_are_read(data, vivid_experiment, whole, tmp_path):
    first, file = next(iter(pairs(data / "wav.scp").items()))
    samples = read_audio(file, 48000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, samples], 1), 48000, subtype="FLOAT")
    replace(data, "wav.scp", 0, f"cat {tmp_path / 'stereo.wav'} |")
    out = decode(data, vivid_experiment, tmp_path / "out")
    assert out["text"] == whole["text"]
    assert float(out["score"][first]) == pytest.approx(float(whole["score"][first]), abs=0.05)


def refused(data, model, tmp_path, *more):
    """The one line on stderr."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments(data, model, tmp_path / "out", "--progress", "false", *more))
    message = str(stopped.value)
    assert message.startswith("bestow_inference: ") and "\n" not in message and "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("kind", "workers"),
    [("not audio", "0"), ("missing", "0"), ("empty", "0"), ("nan", "0"), ("short", "0"), ("missing", "1")],
)
def test_bad_audio_names_utterance_and_file(data, vivid_experiment, tmp_path, kind, workers):
    path = tmp_path / "bad.wav"
    if kind == "not audio":
        path.write_text("words")
    elif kind != "missing":
        samples = {"empty": np.zeros(0), "nan": np.full(8000, np.nan), "short": np.full(50, 0.1)}[kind]
        soundfile.write(path, samples, 16000, subtype="FLOAT")
    uid = replace(data, "wav.scp", 1, path)
    message = refused(data, vivid_experiment, tmp_path, "--num_workers", workers)
    assert repr(uid) in message
    expected = {"not audio": "not an audio file", "missing": "missing file", "empty": "zero samples", "nan": "NaN"}
    assert expected.get(kind, "50 samples (0.003 s) is too short") in message
    assert "bad.wav" in message or kind == "short"


def test_a_prompt_without_answer_room_names_the_utterance(data, vivid_experiment, tmp_path):
    uid = replace(data, "prompt", 2, "red " * 200)
    assert f"utterance {uid!r}: the prompt has" in refused(data, vivid_experiment, tmp_path)


def test_files_of_other_utterances_are_refused(data, vivid_experiment, tmp_path):
    lines = (data / "prompt").read_text("utf-8").splitlines()
    first, second = (line.split()[0] for line in lines[:2])
    (data / "prompt").write_text("\n".join(lines[1:]) + "\n")
    message = refused(data, vivid_experiment, tmp_path)
    assert f"utterance {first!r}: {data / 'prompt'} has no line for it (1 missing)" in message
    (data / "prompt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    message = refused(data, vivid_experiment, tmp_path)
    assert f"utterance {second!r}: line 1 of {data / 'prompt'} is not that of {data / 'wav.scp'}" in message
    shutil.copy(data / "wav.scp", data / "prompt")
    (tmp_path / "keys").write_text("nobody\n")
    message = refused(data, vivid_experiment, tmp_path, "--key_file", str(tmp_path / "keys"))
    assert "utterance 'nobody' of" in message


def test_files_that_are_not_there_are_named(data, vivid_experiment, tmp_path):
    assert "no.zip' does not exist" in refused(data, tmp_path / "no.zip", tmp_path)
    (data / "prompt").unlink()
    assert str(data / "prompt") in refused(data, vivid_experiment, tmp_path)


def test_a_model_must_be_named(data, tmp_path):
    with pytest.raises(SystemExit, match="give --bestow_train_config and --bestow_model_file, or --model_tag"):
        main(arguments(data, "", tmp_path / "out"))


def test_an_unknown_option_is_refused(data, vivid_experiment, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(arguments(data, vivid_experiment, tmp_path, "--beem_size", "3"))
    assert "--beem_size" in capsys.readouterr().err
