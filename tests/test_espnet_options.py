"""Options that ESPnet users expect, through BestowTask, each by what it must change in the result."""

import json

import pytest
import torch

from tests.tiny_training import train


def weights(path):
    return torch.load(path, weights_only=True)


def history(exp):
    return json.loads((exp / "history.json").read_text())


def steps(exp):
    """How often the optimizer moved."""
    state = torch.load(exp / "checkpoint.pth", weights_only=True)["optimizers"][0]["state"]
    return int(max(moments["step"] for moments in state.values()))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_resume_continues_to_the_weights_of_one_run(tiny, tiny_experiment, tmp_path):
    exp = train(tiny, tmp_path / "exp", max_epoch=1)
    train(tiny, exp, "--resume", "true", max_epoch=2)
    assert same(weights(exp / "2epoch.pth"), weights(tiny_experiment / "2epoch.pth"))
    assert [entry["epoch"] for entry in history(exp)] == [1, 2]


def test_frozen_parts_stay_and_the_others_move(tiny, tiny_experiment, tmp_path):
    start = tiny_experiment / "2epoch.pth"
    parts = ["encoder", "connector.blocks.0", "llm"]
    exp = train(tiny, tmp_path / "exp", "--init_param", str(start), "--freeze_param", *parts, max_epoch=1)
    before, after = weights(start), weights(exp / "1epoch.pth")
    # An LLM that was trained before is nowhere else; one that never is (llm: frozen) stays out of checkpoints.
    assert set(after) == set(before)
    for name, value in after.items():
        if any(name.startswith(part + ".") for part in parts):
            assert torch.equal(value, before[name]), name
        elif name.startswith("connector.") and name.endswith("weight"):
            assert not torch.equal(value, before[name]), name


def test_init_param_leaves_out_what_it_is_told_to(tiny, tiny_experiment, tmp_path):
    """<file>:<source>:<target>:<excluded>; a learning rate of 0 shows what training started from."""
    start = tiny_experiment / "2epoch.pth"
    plain, initialised = (
        weights(train(tiny, tmp_path / name, *options, max_epoch=1, optim_conf={"lr": 0.0}) / "1epoch.pth")
        for name, options in (
            ("plain", ()),
            ("init", ("--init_param", f"{start}:connector:connector:connector.text_out,connector.norm")),
        )
    )
    given = weights(start)
    for name, value in initialised.items():
        taken = name.startswith("connector.") and not name.startswith(("connector.text_out", "connector.norm"))
        assert torch.equal(value, (given if taken else plain)[name]), name
    assert not torch.equal(given["connector.text_in.weight"], plain["connector.text_in.weight"])


def test_double_precision_casts_everything_that_is_trained(tiny, tiny_experiment, tmp_path):
    exp = train(tiny, tmp_path / "exp", "--train_dtype", "float64", "--use_amp", "false", max_epoch=1)
    kinds = {value.dtype for value in weights(exp / "1epoch.pth").values() if value.is_floating_point()}
    assert kinds == {torch.float64}
    single, double = (history(e)[0]["train"]["loss"] for e in (tiny_experiment, exp))
    assert single == pytest.approx(double, rel=1e-3)


def test_accumulated_gradients_step_less_often(tiny, tmp_path):
    """Two batches of 4 make one step; two epochs of such steps are not those of a step per batch."""
    runs = [train(tiny, tmp_path / n, "--accum_grad", n, batch_size=4, max_epoch=1) for n in ("1", "2")]
    each, every_second = map(steps, runs)
    assert each // 2 == every_second > 0
    assert not same(*(weights(exp / "1epoch.pth") for exp in runs))


def test_the_best_models_are_averaged(tiny, tmp_path):
    exp = train(tiny, tmp_path / "exp", keep_nbest_models=2, max_epoch=3)
    best = sorted(history(exp), key=lambda entry: entry["valid"]["loss"])[:2]
    a, b = (weights(exp / f"{entry['epoch']}epoch.pth") for entry in best)
    average = weights(exp / "valid.loss.ave.pth")
    for name, value in average.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, (a[name] + b[name]) / 2, rtol=1e-5, atol=1e-7)
    assert len(list(exp.glob("[0-9]*epoch.pth"))) == 2, "the rest is deleted"


def test_data_loader_workers_change_nothing(tiny, tiny_experiment, tmp_path):
    exp = train(tiny, tmp_path / "exp", num_workers=1, max_epoch=1)
    assert history(exp)[0]["train"]["loss"] == history(tiny_experiment)[0]["train"]["loss"]


def test_batches_by_size(tiny, tmp_path):
    lengths = [int(line.split()[1]) for line in (tiny.data["train"] / "utt2num_samples").read_text().splitlines()]
    runs = [
        train(tiny, tmp_path / f"{n}", batch_type="numel", batch_bins=n * max(lengths), max_epoch=1) for n in (2, 5)
    ]
    small, large = map(steps, runs)
    assert len(lengths) / 2 >= small > large >= sum(lengths) / max(lengths) / 6


def test_wait_k_and_offline_are_different_trainings(tiny, tiny_experiment, tmp_path):
    exp = train(tiny, tmp_path / "exp", policy="wait_k", policy_conf={"k": 1, "step": 1}, max_epoch=1)
    wide = train(tiny, tmp_path / "wide", policy="wait_k", policy_conf={"k": 10000, "step": 1}, max_epoch=1)
    offline = history(tiny_experiment)[0]["train"]["loss"]
    assert history(exp)[0]["train"]["loss"] != offline
    # Waiting for everything differs from offline only in prompt positions, which see nothing.
    assert history(wide)[0]["train"]["loss"] == pytest.approx(offline, rel=0.05)
