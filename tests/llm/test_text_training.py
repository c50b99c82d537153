"""A text LLM learns its text, survives kill -9, and is a plain transformers directory."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from espnet_bestow.bin import text_llm_perplexity, text_llm_train
from espnet_bestow.llm.causal_lm import CausalLM, load_causal_lm
from espnet_bestow.llm.continuation import Continuer
from espnet_bestow.llm.perplexity import perplexity
from espnet_bestow.llm.text_config import TextTrainingConfig
from espnet_bestow.llm.text_lines import (
    IGNORED,
    bucketed_batches,
    collate,
    encode_lines,
    endless_batches,
    unlearned,
)
from espnet_bestow.llm.text_training import learning_rate
from espnet_bestow.llm.tokenizer import load_tokenizer
from espnet_bestow.prompt import asked_in_text, build_template
from tests.datadir.helpers import write_files
from tests.llm_fixtures import SENTENCES, write_tokenizer
from tests.tiny_training import environment

MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
CONFIG = {"steps": 40, "batch_size": 2, "lr": 0.02, "warmup_steps": 4, "eval_interval": 10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tokenizer and text."""
    root = tmp_path_factory.mktemp("text_llm")
    write_tokenizer(root / "tokenizer")
    (root / "train.txt").write_text("\n".join(SENTENCES), "utf-8")
    (root / "valid.txt").write_text("\n".join(SENTENCES[:2]), "utf-8")
    return root


def arguments(folder, output_dir, *more, model=MODEL, **changes):
    config = output_dir.with_suffix(".yaml")
    config.write_text(yaml.safe_dump({"model": model, **CONFIG, **changes}))
    out = ["--config", str(config), "--tokenizer", str(folder / "tokenizer")]
    out += ["--train_text", str(folder / "train.txt"), "--valid_text", str(folder / "valid.txt")]
    return [*out, "--output_dir", str(output_dir), *more]


@pytest.fixture(scope="module")
def trained(folder):
    text_llm_train.main(arguments(folder, folder / "llm"))
    return folder / "llm"


def weights(directory):
    return load_causal_lm(str(directory)).state_dict()


def assert_same(a, b):
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_keeps_its_history(trained):
    history = json.loads((trained / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    assert history[-1]["valid"]["loss"] < 0.7 * history[0]["valid"]["loss"]
    assert history[-1]["valid"]["acc"] > history[0]["valid"]["acc"]
    assert set(history[0]) == {"epoch", "train", "valid", "seconds"}


def test_causal_lm_loads_it_with_the_tokenizers_ends(trained):
    llm = CausalLM(str(trained))
    assert (llm.width, llm.model.config.vocab_size) == (16, len(load_tokenizer(str(trained))))
    assert llm.model.config.bos_token_id == 1 and llm.model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_killed_run_ends_with_the_weights_of_the_uninterrupted_one(folder, tmp_path, family):
    gpt2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model = MODEL if family == "llama" else gpt2  # gpt2 has dropout: its draws must repeat too
    options = {"model": model, "steps": 30}
    text_llm_train.main(arguments(folder, tmp_path / "whole", **options))
    parts = tmp_path / "parts"
    # Far more steps than the test waits for, so that the kill finds it at work.
    args = arguments(folder, parts, **{**options, "steps": 30, "eval_interval": 10})
    process = subprocess.Popen([sys.executable, "-c", _SLOW, *args], env=environment(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (parts / "history.json").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (parts / "checkpoint.pth").exists() and not (parts / "model.safetensors").exists()
    text_llm_train.main(arguments(folder, parts, "--resume", "true", **options))
    assert_same(weights(tmp_path / "whole"), weights(parts))
    histories = [json.loads((p / "history.json").read_text()) for p in (tmp_path / "whole", parts)]
    losses = [[entry["train"] for entry in history] for history in histories]
    assert losses[0] == losses[1] and len(losses[0]) == 3


# The real command with slow steps, so that there is a moment between the first save and the end.
_SLOW = """
import time
from espnet_bestow.bin import text_llm_train
from espnet_bestow.llm.text_training import TextTraining
step = TextTraining._update
def slow(self, rows, totals):
    time.sleep(0.1)
    step(self, rows, totals)
TextTraining._update = slow
text_llm_train.main()
"""


def test_resuming_a_finished_run_changes_nothing(folder, trained, tmp_path):
    before = weights(trained)
    text_llm_train.main(arguments(folder, trained, "--resume", "true"))
    assert_same(before, weights(trained))


def test_another_seed_is_another_model(folder, trained, tmp_path):
    text_llm_train.main(arguments(folder, tmp_path / "b", "--seed", "1"))
    a, b = weights(trained), weights(tmp_path / "b")
    assert not torch.equal(a["model.embed_tokens.weight"], b["model.embed_tokens.weight"])


def test_a_checkpoint_of_another_run_is_refused(folder, trained):
    with pytest.raises(SystemExit, match=r"is of another run \(lr: 0.02 there, 0.01 here\)"):
        text_llm_train.main(arguments(folder, trained, "--resume", "true", lr=0.01))


def test_perplexity_equals_a_sum_by_hand(trained, folder, tmp_path):
    model, tokenizer = load_causal_lm(str(trained)), load_tokenizer(str(trained))
    nll = tokens = 0
    for line in SENTENCES:
        ids = torch.tensor([[1, *tokenizer(line, add_special_tokens=False).input_ids, 2]])
        with torch.no_grad():
            logp = model(ids).logits.log_softmax(-1)
        nll -= float(logp[0, :-1].gather(1, ids[0, 1:, None]).sum())
        tokens += ids.shape[1] - 1
    words = sum(len(line.split()) + 1 for line in SENTENCES)
    found = perplexity(model, tokenizer, SENTENCES, batch_size=3)
    assert (found.n, found.tokens, found.words) == (len(SENTENCES), tokens, words)
    assert found.token_perplexity == pytest.approx(math.exp(nll / tokens), rel=1e-4)
    assert found.word_perplexity == pytest.approx(math.exp(nll / words), rel=1e-4)
    output = tmp_path / "new" / "ppl.json"
    text = str(folder / "train.txt")
    text_llm_perplexity.main(["--llm", str(trained), "--text", text, "--output", str(output)])
    written = json.loads(output.read_text())
    assert written["token_perplexity"] == pytest.approx(found.token_perplexity, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stepz": 1}, r"unknown key stepz; known: model, steps, batch_size"),
        ({"model": {**MODEL, "hiden": 1}}, r"model: unknown key hiden; llama knows .*hidden_size"),
        ({"model": {**MODEL, "vocab_size": 9}}, r"model: unknown key vocab_size"),
        ({"model": {"hidden_size": 16}}, r"model: model_type is missing"),
        ({"model": {"model_type": "lama"}}, r"model_type='lama' is not a transformers model"),
        ({"lr": "fast"}, r"lr='fast' must be a number"),
        ({"steps": 0}, r"steps=0 must be"),
        ({"schedule": "step"}, r"schedule='step' is not known; known: cosine, constant"),
        ({"model": {**MODEL, "max_position_embeddings": 8}}, r"exceeds the LLM's context of 8: '"),
    ],
)
def test_a_bad_yaml_is_one_line(folder, tmp_path, changes, message):
    with pytest.raises(SystemExit, match=message):
        text_llm_train.main(arguments(folder, tmp_path / "llm", **changes))


def test_a_full_disk_keeps_the_previous_checkpoint(folder, tmp_path, monkeypatch):
    text_llm_train.main(arguments(folder, tmp_path / "llm", steps=10))
    before = (tmp_path / "llm" / "checkpoint.pth").read_bytes()
    real = torch.save

    def full(obj, path):
        real(obj, path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(SystemExit, match=r"cannot write .*checkpoint.pth \(\d+ MiB free"):
        text_llm_train.main(arguments(folder, tmp_path / "llm", steps=10))
    assert (tmp_path / "llm" / "checkpoint.pth").read_bytes() == before
    assert not (tmp_path / "llm" / "checkpoint.part").exists()


def test_batches_hold_every_line_once_and_continue_anywhere():
    lengths = [3 + i % 17 for i in range(203)]
    epoch = bucketed_batches(lengths, 8, seed=5)
    assert sorted(i for batch in epoch for i in batch) == list(range(203))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in epoch)
    assert padded < 1.1 * sum(lengths)
    whole, later = endless_batches(lengths, 8, 5), endless_batches(lengths, 8, 5, skip=30)
    assert [next(whole) for _ in range(60)][30:] == [next(later) for _ in range(30)]


def test_lines_are_closed_by_the_tokenizers_own_ends(folder):
    ids = encode_lines(load_tokenizer(str(folder / "tokenizer")), ["the dog"])[0].tolist()
    assert ids[0] == 1 and ids[-1] == 2 and 0 not in ids


def test_learning_rate_warms_up_and_falls_to_zero():
    config = TextTrainingConfig(steps=100, lr=1.0, warmup_steps=10)
    assert [learning_rate(config, step) for step in (0, 4, 10)] == [0.1, 0.5, 1.0]
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert learning_rate(config, 99) < 0.001
    constant = TextTrainingConfig(steps=100, lr=1.0, warmup_steps=0, schedule="constant")
    assert learning_rate(constant, 99) == 1.0


def test_an_llm_learns_tasks_from_transcripts(folder, tmp_path):
    """It answers about text that it was trained to be asked about, as ``bestow_continue`` asks it."""
    said = {"a": "the small dog sees three red birds", "b": "turn on the light in the kitchen"}
    data = write_files(
        tmp_path / "data",
        wav_scp="".join(f"{uid} {uid}.wav\n" for uid in said),
        src_text="".join(f"{uid} {words}\n" for uid, words in said.items()),
        prompt="a translate to german\nb transcribe the english speech\n",
        text="a der kleine hund\nb turn on the light\n",
    )
    out = tmp_path / "llm"
    options = ["--train_tasks", str(data), "--valid_tasks", str(data)]
    changes = {"steps": 150, "batch_size": 8, "eval_interval": 150}
    text_llm_train.main([*arguments(folder, out, **changes), *options])
    template = build_template("plain", str(out))
    prompts = {
        "a": template.encode_prompt(asked_in_text("translate to german", said["a"])),
        "b": template.encode_prompt(asked_in_text("transcribe the english speech", said["b"])),
    }
    found = dict(Continuer(load_causal_lm(str(out)), template.end)(prompts))
    assert {uid: template.decode(ids) for uid, ids in found.items()} == {
        "a": "der kleine hund",
        "b": "turn on the light",
    }
    write_files(data, prompt="c nothing\n")
    with pytest.raises(SystemExit, match=r"id not in prompt.*the first is utterance 'a'"):
        text_llm_train.main([*arguments(folder, tmp_path / "other"), *options])
    write_files(data, prompt="a what\nb what\n", src_text="a\nb hello\n")
    with pytest.raises(SystemExit, match=r"src_text: row 'a' has no words"):
        text_llm_train.main([*arguments(folder, tmp_path / "other"), *options])


def test_what_is_unlearned_is_read_but_no_label():
    ids, labels = collate([torch.tensor([*unlearned([7, 0, 8]), 5, 2]), torch.tensor([1, 9, 2])])
    assert ids.tolist() == [[7, 0, 8, 5], [1, 9, 0, 0]]
    assert labels.tolist() == [[IGNORED, IGNORED, 5, 2], [9, 2, IGNORED, IGNORED]]
