import json
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from espnet_bestow.evaluate.history import Epoch, History, read_histories, read_history
from espnet_bestow.evaluate.plots import (
    plot_loss,
    plot_loss_parts,
    plot_scores,
    plot_token_accuracy,
)
from espnet_bestow.evaluate.results import ResultRow
from espnet_bestow.evaluate.tables import main_rows

ROW = ResultRow("bestow", "asr_en", "test", "wer", 3.0, 400, 2.5, 4.0, "cmd")


def record(number: int, loss: float) -> dict:
    stats = {"loss": loss, "acc": 1 - loss / 10, "loss_asr_en": loss, "loss_sqa": loss / 2}
    return {"epoch": number, "train": stats, "valid": stats | {"loss": loss + 1}, "seconds": 1.5}


@pytest.fixture
def exp(tmp_path):
    for stage, losses in {"bestow": [3.0, 2.0, 1.0], "ctc": [4.0], "empty": []}.items():
        (tmp_path / stage).mkdir()
        records = [record(i, loss) for i, loss in enumerate(losses, start=1)]
        (tmp_path / stage / "history.json").write_text(json.dumps(records))
    (tmp_path / "no_history").mkdir()
    return tmp_path


def ink(path) -> float:
    """Share of pixels that are not white."""
    return float((imread(path)[..., :3].min(axis=-1) < 0.9).mean())


def test_histories_are_found_and_read(exp):
    histories = read_histories(exp)
    assert [h.stage for h in histories] == ["bestow", "ctc"]
    assert histories[0].curve("train", "loss") == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert histories[0].curve("valid", "loss") == ([1, 2, 3], [4.0, 3.0, 2.0])
    assert histories[0].statistics() == ["acc", "loss", "loss_asr_en", "loss_sqa"]


def test_diverged_epochs_leave_gaps():
    epochs = [Epoch(1, {"loss": 2.0}, {}), Epoch(2, {"loss": float("nan")}, {}), Epoch(3, {}, {})]
    assert History("x", epochs).curve("train", "loss") == ([1], [2.0])


@pytest.mark.parametrize("plot", [plot_loss, plot_token_accuracy, plot_loss_parts])
def test_curves_are_drawn_and_reproducible(exp, plot):
    first, second = exp / "images" / "a.png", exp / "images" / "b.png"
    assert plot(read_histories(exp), first) == first
    plot(read_histories(exp), second)
    assert first.read_bytes() == second.read_bytes()
    assert 0.01 < ink(first) < 0.5
    height, width = imread(first).shape[:2]
    assert width > 2 * height, "two stages stand side by side"


def test_curves_show_the_data(exp):
    histories = read_histories(exp)
    plot_loss(histories, exp / "a.png")
    steeper = [Epoch(e.number, {"loss": e.train["loss"] ** 2}, e.valid) for e in histories[0].epochs]
    plot_loss([History("bestow", steeper), histories[1]], exp / "b.png")
    assert not np.array_equal(imread(exp / "a.png"), imread(exp / "b.png"))


def test_nothing_to_draw_writes_nothing(tmp_path):
    histories = [History("lm", [Epoch(1, {"loss": 1.0}, {})])]
    assert plot_token_accuracy(histories, tmp_path / "a.png") is None
    assert plot_loss_parts(histories, tmp_path / "a.png") is None
    assert plot_loss([], tmp_path / "a.png") is None
    assert plot_scores([], tmp_path / "a.png") is None
    assert list(tmp_path.iterdir()) == []


def test_main_metric_of_each_task():
    rows = [
        replace(ROW, metric="cer"),
        ROW,
        replace(ROW, system="salm"),
        replace(ROW, task="sqa", metric="rouge_l"),
        replace(ROW, task="sqa", metric="exact_match"),
    ]
    assert {task: {r.metric for r in members} for task, members in main_rows(rows).items()} == {
        "asr_en": {"wer"},
        "sqa": {"exact_match"},
    }
    assert len(main_rows(rows)["asr_en"]) == 2


def test_scores_of_two_systems(tmp_path):
    rows = [
        replace(ROW, system=system, test_set=test_set, task=task)
        for system in ("bestow", "salm")
        for test_set in ("test", "test_noisy")
        for task in ("asr_en", "asr_de", "asr_fr", "asr_es")
    ]
    path = plot_scores(rows, tmp_path / "scores.png")
    assert 0.005 < ink(path) < 0.5


def test_value_outside_its_interval_is_drawn(tmp_path):
    # A percentile interval need not hold the value itself when a test set is tiny.
    rows = [replace(ROW, value=5.0)]
    assert plot_scores(rows, tmp_path / "scores.png").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "not a JSON file"),
        ("{}", "expected a list of epochs, got dict"),
        ('[{"train": {}}]', "entry 0: expected an object with an integer 'epoch'"),
        ('[{"epoch": 1, "valid": 3}]', "entry 0: valid must be an object, got 3"),
        ('[{"epoch": 1, "valid": {"acc": "x"}}]', "entry 0: valid.acc must be a number, got 'x'"),
    ],
)
def test_broken_history_names_file_and_value(tmp_path, text, message):
    path = tmp_path / "history.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"history.json: {message}"):
        read_history(path)
