"""Checkpoints that survive crashes and full disks, and training that does not depend on how it is split."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from espnet2.torch_utils.recursive_op import recursive_average

from espnet_bestow.trainer import atomic_saves, average_at_once
from tests.processes import in_processes
from tests.tiny_training import environment, run_module, train

MODULE = "espnet_bestow.bin.bestow_train"


def weights(exp, epoch):
    return torch.load(exp / f"{epoch}epoch.pth", weights_only=True)


def test_kill_dash_nine_then_resume_ends_with_the_same_weights(tiny, tmp_path):
    epochs = 4
    whole = train(tiny, tmp_path / "whole", max_epoch=epochs)
    exp = tmp_path / "killed"
    options = tiny.options(tiny.config(tmp_path / "conf", max_epoch=epochs), exp)
    process = subprocess.Popen([sys.executable, "-m", MODULE, *options], env=environment(), stderr=subprocess.PIPE)
    deadline = time.time() + 90
    while not (exp / "1epoch.pth").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (exp / "1epoch.pth").exists() and not (exp / f"{epochs}epoch.pth").exists()
    train(tiny, exp, "--resume", "true", max_epoch=epochs)
    a, b = weights(whole, epochs), weights(exp, epochs)
    assert all(torch.equal(a[name], b[name]) for name in a)
    history = json.loads((exp / "history.json").read_text())
    assert [entry["epoch"] for entry in history] == list(range(1, epochs + 1))


def test_resume_restores_the_epoch_file_that_a_crash_left_out(tiny, tmp_path):
    exp = train(tiny, tmp_path / "exp", max_epoch=2)
    # The crash struck after checkpoint.pth and before 2epoch.pth; the links point nowhere.
    expected = weights(exp, 2)
    (exp / "2epoch.pth").unlink()
    train(tiny, exp, "--resume", "true", max_epoch=2)
    restored = weights(exp, 2)
    assert all(torch.equal(restored[name], expected[name]) for name in expected)


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path):
    target = tmp_path / "checkpoint.pth"
    with atomic_saves():
        torch.save({"x": torch.arange(10)}, target)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(OSError, match=r"cannot write .*checkpoint.pth .*the previous one is untouched"):
                torch.save({"x": torch.randn(100_000)}, target)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, previous)
    assert torch.equal(torch.load(target, weights_only=True)["x"], torch.arange(10))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pth"]


def test_torch_save_is_itself_again_afterwards():
    before = torch.save
    with atomic_saves():
        assert torch.save is not before
    assert torch.save is before


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_give_the_loss_curve_of_one(tiny, tmp_path):
    """Same global batch; an encoder without batch statistics, which each process would gather for itself."""
    epochs = 3
    alone = train(tiny, tmp_path / "alone", max_epoch=epochs)
    config = tiny.config(tmp_path / "conf", max_epoch=epochs)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += [
        "--master_port",
        str(free_port()),
        "-m",
        MODULE,
        *tiny.options(config, tmp_path / "pair"),
        "--dist_backend",
        "gloo",
    ]
    command += ["--multiprocessing_distributed", "false"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    for phase in ("train", "valid"):
        for one, two in zip(history(alone), history(tmp_path / "pair"), strict=True):
            for name in ("loss", "loss_llm", "loss_ctc", "acc"):
                assert one[phase][name] == pytest.approx(two[phase][name], abs=1e-3), (phase, name)


def history(exp):
    return json.loads((exp / "history.json").read_text())


def test_progress_is_one_line_per_epoch_on_stdout(tiny, tmp_path):
    config = tiny.config(tmp_path / "conf")
    done = run_module(MODULE, *tiny.options(config, tmp_path / "exp"))
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2 and "valid loss" in lines[1], done.stdout
    assert os.path.exists(tmp_path / "exp" / "history.json")


def averages(rank):
    nan = float("nan")
    stats = {"a": [2.0, 6.0], "in_one": [nan, 3.0], "nowhere": [nan, nan]}
    mine = {name: torch.tensor([values[rank]]) for name, values in stats.items()}
    weight = torch.tensor([[10.0, 30.0][rank]])
    return average_at_once(mine, weight), recursive_average(mine, weight, True)


def test_statistics_that_travel_together_are_those_of_espnet(tmp_path):
    for (stats, weight), (theirs, their_weight) in in_processes(averages, 2, tmp_path):
        assert weight == their_weight == 40.0
        assert stats["a"] == 5.0
        torch.testing.assert_close(stats, theirs, rtol=0, atol=0, equal_nan=True)
