"""Training through ESPnet's face: choices, options, encoders, LLM modes, errors."""

import argparse
import json

import numpy as np
import pytest
import torch
import yaml

from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.task import BestowTask
from tests.tiny_training import CONFIG, run_module, train

SMALL = {"output_size": 16, "attention_heads": 2, "linear_units": 32, "num_blocks": 1}
ENCODERS = {
    "transformer": SMALL,
    "conformer": SMALL,
    "branchformer": {"output_size": 16, "attention_heads": 2, "cgmlp_linear_units": 32, "num_blocks": 1},
    "e_branchformer": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "cgmlp_linear_units": 32,
        "num_blocks": 1,
    },
    "contextual_block_conformer": {**SMALL, "block_size": 16, "hop_size": 8, "look_ahead": 4, "init_average": True},
    "vgg_rnn": {"rnn_type": "lstm", "num_layers": 1, "hidden_size": 8, "output_size": 16},
    "fastconformer": {**SMALL, "subsampling_channels": 8},
    "hf_whisper": SMALL,
}


def losses(exp):
    return [entry["train"]["loss"] for entry in json.loads((exp / "history.json").read_text())]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_trains_from_its_name_in_a_yaml(tiny, tmp_path, encoder):
    exp = train(tiny, tmp_path / "exp", encoder=encoder, encoder_conf=ENCODERS[encoder], max_epoch=1)
    assert (exp / "1epoch.pth").exists()
    assert losses(exp)[0] > 0


def test_conv1d_gives_espnet_encoders_80_ms_frames(tiny, tmp_path):
    encoder = {**ENCODERS["e_branchformer"], "input_layer": "linear"}
    options = {"preencoder": "conv1d", "preencoder_conf": {"output_size": 12}, "encoder_conf": encoder}
    exp = train(tiny, tmp_path / "exp", encoder="e_branchformer", **options, max_epoch=1)
    model, _ = BestowTask.build_model_from_file(exp / "config.yaml", exp / "1epoch.pth")
    speech = model.eval().encode(torch.randn(1, 16000), torch.tensor([16000]))
    assert speech.lengths.tolist() == [-(-101 // 8)]


BEATS = {
    "embed_dim": 16,
    "encoder_layers": 1,
    "encoder_embed_dim": 16,
    "encoder_ffn_embed_dim": 24,
    "encoder_attention_heads": 2,
    "conv_pos": 8,
    "conv_pos_groups": 2,
}


@pytest.mark.parametrize("size", [{}, {"input_size": 1}])
def test_an_encoder_of_waveforms_needs_no_frontend(tiny, tmp_path, size):
    options = {"frontend": None, "frontend_conf": {}, "normalize": None, **size}
    options |= {"encoder": "beats", "encoder_conf": {"beats_config": BEATS}}
    exp = train(tiny, tmp_path / "exp", **options, max_epoch=1)
    model, _ = BestowTask.build_model_from_file(exp / "config.yaml", exp / "1epoch.pth")
    waveform, lengths = torch.randn(2, 16000), torch.tensor([16000, 12000])
    together, alone = model.eval().encode(waveform, lengths), model.encode(waveform[1:, :12000], lengths[1:])
    torch.testing.assert_close(together.rows()[1], alone.rows()[0], rtol=0, atol=1e-5)
    train(tiny, tmp_path / "stats", "--collect_stats", "true", **options)


def test_features_from_files_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"^input_size=80 beside frontend: default; BESTOW reads waveforms"):
        train(tiny, tmp_path / "exp", input_size=80)


@pytest.mark.parametrize(("conf", "needed"), [({"fs": "8k"}, 800), ({}, 1600)])
def test_training_audio_that_is_too_short_is_named(tiny, tmp_path, conf, needed):
    args = BestowTask.get_parser().parse_args(["--config", str(tiny.config(tmp_path, frontend_conf=conf))])
    preprocess = BestowTask.build_preprocess_fn(args, True)
    assert len(preprocess("short", {"speech": np.ones(needed)})["speech"]) == needed
    with pytest.raises(BadUtteranceError, match=rf"^utterance 'click': audio of {needed - 1} samples .* is too short"):
        preprocess("click", {"speech": np.ones(needed - 1)})


def test_training_learns_and_reports_per_task(tiny_experiment):
    history = json.loads((tiny_experiment / "history.json").read_text())
    assert history[1]["train"]["loss"] < history[0]["train"]["loss"]
    names = set(history[0]["train"])
    assert {"loss", "loss_llm", "loss_ctc", "acc"} <= names
    assert {"loss_asr_en", "loss_asr_de"} & names


def test_same_seed_same_first_losses(tiny, tmp_path):
    a = train(tiny, tmp_path / "a", max_epoch=1)
    b = train(tiny, tmp_path / "b", max_epoch=1)
    assert losses(a) == losses(b)


@pytest.mark.parametrize("encoder", ["fastconformer"])
def test_print_config_shows_the_defaults_of_every_choice(encoder):
    shown = run_module("espnet_bestow.bin.bestow_train", "--print_config", "--encoder", encoder)
    config = yaml.safe_load(shown.stdout)
    assert config["connector_conf"]["num_blocks"] == 2
    assert config["encoder_conf"] and config["policy"] == "offline" and config["llm"] == "full"


def test_muon_learns_and_resumes_exactly(tiny, tmp_path):
    options = {"optim": "muon", "optim_conf": {"lr": 0.003, "every": 2}}
    whole = train(tiny, tmp_path / "whole", max_epoch=3, **options)
    parts = train(tiny, tmp_path / "parts", max_epoch=1, **options)
    train(tiny, parts, "--resume", "true", max_epoch=3, **options)
    a, b = (torch.load(exp / "3epoch.pth", weights_only=True) for exp in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert losses(whole)[-1] < losses(whole)[0]
    groups = torch.load(whole / "checkpoint.pth", weights_only=True)["optimizers"][0]["param_groups"]
    assert [group["matrices"] for group in groups] == [True, False] and groups[0]["steps"] == 6


@pytest.mark.parametrize("option", ["exclude_weight_decay", "sharded_ddp"])
def test_muon_says_what_it_does_not_go_with(tiny, tmp_path, option):
    with pytest.raises(ValueError, match=f"{option}: true does not go with optim: muon"):
        train(tiny, tmp_path / "exp", optim="muon", optim_conf={"lr": 0.003}, **{option: True})


def test_numbers_without_a_point_are_numbers(tiny, tmp_path):
    options = ["--dry_run", "true", "--scheduler_conf", "max_steps=1e1"]
    exp = train(tiny, tmp_path / "exp", *options, optim_conf={"lr": "8e-4"}, scheduler="tristagelr")
    written = yaml.safe_load((exp / "config.yaml").read_text())
    assert written["optim_conf"] == {"lr": 8e-4} and written["scheduler_conf"]["max_steps"] == 10


def test_dry_run_builds_and_stops(tiny, tmp_path):
    exp = train(tiny, tmp_path / "exp", "--dry_run", "true")
    assert (exp / "config.yaml").exists() and not (exp / "history.json").exists()


def test_collect_stats_needs_neither_llm_weights_nor_encoder(tiny, tmp_path):
    exp = train(tiny, tmp_path / "stats", "--collect_stats", "true")
    assert (exp / "train" / "feats_stats.npz").exists()
    assert (exp / "train" / "speech_shape").exists() and (exp / "valid" / "text_shape").exists()


def test_ctc_pretraining_then_init_param(tiny, tmp_path):
    ctc = train(tiny, tmp_path / "ctc", model_conf={"ctc_weight": 1.0}, max_epoch=1)
    weights = torch.load(ctc / "1epoch.pth", weights_only=True)
    assert not any(name.startswith(("llm.", "connector.")) for name in weights)
    source = f"{ctc / '1epoch.pth'}"
    exp = train(
        tiny,
        tmp_path / "exp",
        *("--init_param", f"{source}:encoder:encoder", f"{source}:ctc:ctc"),
        *("--freeze_param", "encoder"),
        max_epoch=1,
    )
    after = torch.load(exp / "1epoch.pth", weights_only=True)
    for name, value in weights.items():
        if name.startswith("encoder."):
            assert torch.equal(after[name], value), name
    assert losses(exp)[0] > 0


@pytest.mark.parametrize("mode", ["frozen", "lora"])
def test_frozen_weights_stay_out_of_checkpoints(tiny, tmp_path, mode):
    options = {"llm": mode, "llm_conf": {"path": str(tiny.llm), "dtype": "bfloat16"}}
    exp = train(tiny, tmp_path / "exp", max_epoch=1, **options)
    names = [n for n in torch.load(exp / "1epoch.pth", weights_only=True) if n.startswith("llm.")]
    assert all("lora_" in name for name in names)
    assert bool(names) == (mode == "lora")
    model, _ = BestowTask.build_model_from_file(exp / "config.yaml", exp / "1epoch.pth")
    assert {p.dtype for n, p in model.llm.named_parameters() if "lora_" not in n} == {torch.bfloat16}
    trained = torch.load(exp / "1epoch.pth", weights_only=True)
    loaded = model.state_dict()
    assert set(loaded) == set(trained) and all(torch.equal(loaded[n], trained[n]) for n in trained)


def test_a_lora_run_resumes_exactly(tiny, tmp_path):
    options = {"llm": "lora", "llm_conf": {"path": str(tiny.llm), "rank": 2}}
    whole = train(tiny, tmp_path / "whole", max_epoch=3, **options)
    parts = train(tiny, tmp_path / "parts", max_epoch=1, **options)
    train(tiny, parts, "--resume", "true", max_epoch=3, **options)
    a, b = (torch.load(exp / "3epoch.pth", weights_only=True) for exp in (whole, parts))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("choice", ["encoder", "connector", "policy", "template", "llm", "model", "frontend"])
def test_unknown_keys_are_errors_that_list_the_known_ones(tiny, tmp_path, choice):
    conf = {**CONFIG.get(f"{choice}_conf", {}), "no_such_key": 1}
    if choice == "llm":
        conf["path"] = str(tiny.llm)
    with pytest.raises(ValueError, match=rf"{choice}_conf: unknown key no_such_key; \w+ knows \["):
        train(tiny, tmp_path / "exp", **{f"{choice}_conf": conf})


def test_a_checkpoint_of_another_config_is_one_clear_error(tiny, tiny_experiment, tmp_path):
    other = train(tiny, tmp_path / "exp", connector_conf={"dim": 8, "num_heads": 2}, max_epoch=1)
    with pytest.raises(RuntimeError, match=r"1epoch.pth does not fit this configuration: .*connector"):
        BestowTask.build_model_from_file(tiny_experiment / "config.yaml", other / "1epoch.pth")


def test_an_llm_path_that_does_not_exist_is_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match="llm path='no/such/llm'"):
        train(tiny, tmp_path / "exp", llm_conf={"path": "no/such/llm"})


def test_a_missing_llm_path_is_named(tiny, tmp_path):
    with pytest.raises(ValueError, match="llm_conf: path is missing"):
        train(tiny, tmp_path / "exp", llm_conf={})


def test_ctc_without_transcripts_is_named(tiny, tmp_path):
    data = {}
    for split, folder in tiny.data.items():
        data[split] = tmp_path / split
        data[split].mkdir()
        for name in ("wav.scp", "text", "prompt", "utt2num_samples"):
            (data[split] / name).write_text((folder / name).read_text())
    config = tiny.config(tmp_path / "conf")
    with pytest.raises(ValueError, match=r"ctc_weight=0.2 needs the data name src_text"):
        BestowTask.main(cmd=tiny.options(config, tmp_path / "exp", data))


def test_wait_k_trains(tiny, tmp_path):
    exp = train(tiny, tmp_path / "exp", policy="wait_k", policy_conf={"k": [1, 3], "step": 1}, max_epoch=1)
    assert losses(exp)[0] > 0


def test_espnet_encoder_table_is_not_touched():
    from espnet2.tasks import asr

    assert "fastconformer" not in asr.encoder_choices.classes


def test_a_row_without_a_task_is_named(tmp_path):
    path = tmp_path / "utt2task"
    path.write_text("u1 asr_en\nu2\n")
    args = argparse.Namespace(train_data_path_and_name_and_type=[(str(path), "task", "text")])
    with pytest.raises(ValueError, match=r"utt2task: utterance 'u2' has no task"):
        BestowTask.task_names(args)


def test_alignment_compares_the_tokens_of_one_vocabulary():
    args = argparse.Namespace(token_list=["a", "b"], model_conf={"alignment_weight": 0.5})
    with pytest.raises(ValueError, match=r"alignment_weight=0.5 compares transcripts .* leave out token_list"):
        BestowTask.build_model(args)
