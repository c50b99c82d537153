"""Packed, exported and uploaded models answer as the trained one does, wherever they are."""

import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import soundfile
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from espnet_bestow.bin import bestow_export, bestow_pack, bestow_upload
from espnet_bestow.inference import DecodingOptions, Speech2Text
from espnet_bestow.model_dir import ModelDirError, locate, read_config, unpack
from espnet_bestow.task import BestowTask
from tests.tiny_training import environment, train

OPTIONS = DecodingOptions(beam_size=2, max_tokens=8)
PROMPT = "transcribe the english speech"


def audio():
    return np.random.default_rng(0).standard_normal(16000).astype(np.float32) * 0.1


def answer(model):
    return tuple(Speech2Text.from_pretrained(model, OPTIONS)(audio(), PROMPT))


@pytest.fixture(scope="module")
def lora_experiment(tiny, tmp_path_factory):
    """One epoch with adapters, their second matrix moved off zero, and global normalisation."""
    root = tmp_path_factory.mktemp("lora")
    train(tiny, root / "stats", "--collect_stats", "true")
    exp = train(
        tiny,
        root / "exp",
        max_epoch=1,
        llm="lora",
        llm_conf={"path": str(tiny.llm), "rank": 2, "alpha": 8},
        normalize="global_mvn",
        normalize_conf={"stats_file": str(root / "stats" / "train" / "feats_stats.npz")},
    )
    path = (exp / "1epoch.pth").resolve()
    state = torch.load(path, weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for name, value in state.items():
        if "lora_B" in name:
            value.normal_(std=0.5, generator=generator)
    torch.save(state, path)
    return exp


@pytest.fixture(scope="module")
def packed(lora_experiment):
    outpath = lora_experiment.parent / "exp.zip"
    args = ["--exp", str(lora_experiment), "--outpath", str(outpath), "--model_file", "1epoch.pth"]
    bestow_pack.main(args)
    return outpath


def lora_answer(exp):
    s2t = Speech2Text.from_files(exp / "config.yaml", exp / "1epoch.pth", OPTIONS)
    return tuple(s2t(audio(), PROMPT))


def test_a_zip_holds_each_thing_once_and_no_path_of_the_training(packed, tiny):
    with zipfile.ZipFile(packed) as content:
        names = content.namelist()
        config = content.read("config.yaml").decode()
    assert sorted(names) == sorted(set(names))
    assert {"meta.yaml", "1epoch.pth", "normalize/feats_stats.npz"} < set(names)
    assert {"llm/config.json", "llm/tokenizer.json", "llm/model.safetensors"} < set(names)
    assert str(tiny.root) not in config and str(packed.parent) not in config
    meta = yaml.safe_load(zipfile.ZipFile(packed).read("meta.yaml"))
    assert meta["yaml_files"] == {"bestow_train_config": "config.yaml"}
    assert meta["files"] == {"bestow_model_file": "1epoch.pth"}


def test_a_teacher_stays_where_the_training_was(tiny_experiment, tiny, tmp_path):
    conf = {"ctc_weight": 0.2, "teacher": str(tiny_experiment)}
    exp = train(tiny, tmp_path / "exp", max_epoch=1, model_conf=conf)
    bestow_pack.main(["--exp", str(exp), "--outpath", str(tmp_path / "exp.zip")])
    with zipfile.ZipFile(tmp_path / "exp.zip") as file:
        config = file.read("config.yaml").decode()
    assert str(tiny_experiment) not in config and yaml.safe_load(config)["model_conf"]["ctc_weight"] == 0.2
    assert answer(tmp_path / "exp.zip") == answer(exp)


def test_a_moved_zip_answers_the_same_from_another_directory(lora_experiment, packed, tmp_path):
    away = tmp_path / "away"
    (away / "cwd").mkdir(parents=True)
    shutil.copy(packed, away / "model.zip")
    soundfile.write(away / "a.wav", audio(), 16000, subtype="FLOAT")
    # Nothing of the training may be needed: its files are out of the way while the copy answers.
    hidden = lora_experiment.parent.with_name("hidden")
    expected = lora_answer(lora_experiment)
    os.rename(lora_experiment.parent, hidden)
    try:
        code = (
            "from espnet_bestow.inference import *\n"
            "o = DecodingOptions(beam_size=2, max_tokens=8)\n"
            f"r = Speech2Text.from_pretrained('../model.zip', o)('../a.wav', {PROMPT!r})\n"
            "print(repr((r.text, r.tokens)), r.score, sep='\\n')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=away / "cwd",
            env=environment(),
            capture_output=True,
            text=True,
        )
    finally:
        os.rename(hidden, lora_experiment.parent)
    assert done.returncode == 0, done.stderr
    words, score = done.stdout.strip().splitlines()[-2:]
    assert words == repr(expected[:2])
    assert float(score) == pytest.approx(expected[2], abs=1e-4)


def test_an_unpacked_folder_can_be_moved(lora_experiment, packed, tmp_path):
    folder = tmp_path / "snapshot"
    shutil.copytree(unpack(packed), folder)
    assert answer(folder) == lora_answer(lora_experiment)


def test_a_recipe_directory_answers_from_anywhere_and_can_be_moved(tiny_experiment, tiny, tmp_path, monkeypatch):
    """Its configurations have paths from where the training ran; another LLM may have that name where we are."""
    recipe, here = tmp_path / "moved" / "recipe", tmp_path / "here"
    shutil.copytree(tiny_experiment, recipe / "exp" / "bestow", symlinks=True)
    shutil.copytree(tiny.llm, recipe / "exp" / "llm")
    config = recipe / "exp" / "bestow" / "config.yaml"
    content = yaml.safe_load(config.read_text()) | {"llm_conf": {"path": "exp/llm"}}
    config.write_text(yaml.safe_dump(content))
    (here / "exp" / "llm").mkdir(parents=True)
    monkeypatch.chdir(here)
    assert read_config(config)["llm_conf"]["path"] == str(recipe / "exp" / "llm")
    assert answer(recipe / "exp" / "bestow") == answer(tiny_experiment)
    monkeypatch.chdir(recipe)
    assert answer("exp/bestow") == answer(tiny_experiment)


def test_what_lies_nowhere_above_a_configuration_stays_as_it_is(tmp_path):
    conf = {"path": "me/some-llm", "rank": 2, "other": "exp"}
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "config.yaml").write_text(yaml.safe_dump({"llm_conf": conf, "stats_file": None, "file": ""}))
    assert read_config(tmp_path / "exp" / "config.yaml") == {"llm_conf": conf, "stats_file": None, "file": ""}


def test_unpacking_follows_a_newer_zip(packed, tmp_path):
    archive = tmp_path / "m.zip"
    shutil.copy(packed, archive)
    folder = unpack(archive)
    (folder / "mark").touch()
    assert (unpack(archive) / "mark").exists()
    os.utime(archive, (2e9 + 1e9, 2e9 + 1e9))
    assert not (unpack(archive) / "mark").exists()


def test_a_fully_trained_llm_travels_in_its_trained_state(tiny_experiment, tmp_path):
    bestow_pack.main(["--exp", str(tiny_experiment), "--outpath", str(tmp_path / "m.zip")])
    text, tokens, score = answer(tiny_experiment)
    again = answer(tmp_path / "m.zip")
    assert again[:2] == (text, tokens) and again[2] == pytest.approx(score, abs=1e-4)
    _, checkpoint = locate(tmp_path / "m.zip")
    names = torch.load(checkpoint, weights_only=True)
    assert names and not any(name.startswith("llm.") for name in names)


def test_a_folded_export_has_the_logits_of_the_adapters(lora_experiment, tmp_path):
    out = tmp_path / "export"
    args = ["--exp", str(lora_experiment), "--output_dir", str(out), "--model_file", "1epoch.pth"]
    bestow_export.main(args)
    plain = AutoModelForCausalLM.from_pretrained(out / "llm")
    assert not any("lora" in name for name in plain.state_dict())
    before, _ = BestowTask.build_model_from_file(lora_experiment / "config.yaml", lora_experiment / "1epoch.pth")
    base = AutoModelForCausalLM.from_pretrained(before.llm.path).eval()
    ids = AutoTokenizer.from_pretrained(out / "llm")(PROMPT, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = before.eval().llm.model(ids).logits
        assert (base(ids).logits - expected).abs().max() > 0.1  # the adapters do something
        assert torch.allclose(plain.eval()(ids).logits, expected, atol=1e-5, rtol=1e-5)
    config = read_config(out / "config.yaml")
    assert config["llm"] == "frozen" and config["llm_conf"]["path"] == str(out.resolve() / "llm")
    text, tokens, score = lora_answer(lora_experiment)
    again = answer(out)
    assert again[:2] == (text, tokens) and again[2] == pytest.approx(score, abs=1e-4)


def test_the_folder_for_the_hub_answers_and_has_a_card(lora_experiment, packed, tmp_path):
    results = tmp_path / "RESULTS.md"
    results.write_text("| task | WER |\n")
    bestow_upload.prepare(packed, "me/bestow-mini", tmp_path / "hub", results)
    card = (tmp_path / "hub" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "espnet"
    assert 'from_pretrained("me/bestow-mini")' in card and "| task | WER |" in card
    assert answer(tmp_path / "hub") == lora_answer(lora_experiment)


@pytest.mark.parametrize("repo", ["no_owner", "a/b/c", "me/na me"])
def test_a_bad_repository_name_is_refused(repo, capsys):
    with pytest.raises(SystemExit):
        bestow_upload.main(["--packed", "m.zip", "--hf_repo", repo])
    assert "is not" in capsys.readouterr().err


def test_uploading_without_a_hub_is_one_line(packed):
    with pytest.raises(SystemExit, match=r"error: cannot upload to 'me/bestow'.*logged in"):
        bestow_upload.main(["--packed", str(packed), "--hf_repo", "me/bestow"])


def test_uploading_before_packing_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"no\.zip: no such file; run stage 14"):
        bestow_upload.main(["--packed", str(tmp_path / "no.zip"), "--hf_repo", "me/bestow"])


def test_packing_errors_name_the_file(tiny_experiment, tmp_path):
    exp = str(tiny_experiment)
    with pytest.raises(SystemExit, match=r"'.*none\.pth' does not exist"):
        args = ["--exp", exp, "--outpath", str(tmp_path / "m.zip"), "--model_file", "none.pth"]
        bestow_pack.main(args)
    with pytest.raises(SystemExit, match=r"must end in \.zip"):
        bestow_pack.main(["--exp", exp, "--outpath", str(tmp_path / "m.tgz")])
    with pytest.raises(SystemExit, match=r"has no config.yaml"):
        bestow_pack.main(["--exp", str(tmp_path), "--outpath", str(tmp_path / "m.zip")])


def test_a_zip_of_something_else_is_named(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no zip")
    with pytest.raises(ModelDirError, match=r"a.zip': not a zip"):
        locate(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as other:
        other.writestr("x.txt", "x")
    with pytest.raises(ModelDirError, match=r"b.zip': not a packed model"):
        locate(tmp_path / "b.zip")
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*.unpacked"))
