"""Checkpoints that survive crashes and full disks, and training that does not depend on how it is split."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from espnet2.torch_utils.recursive_op import recursive_average
from espnet2.train import trainer as espnet_trainer
from espnet2.train.reporter import SubReporter, aggregate
from torch.nn.parallel import DistributedDataParallel

from espnet_bestow.trainer import (
    as_many_steps_everywhere,
    atomic_saves,
    average_epoch,
    averages_at_once,
    shared_training,
)
from tests.processes import in_processes
from tests.test_shared_training import WithLoss
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
    links = {link.name: link.readlink() for link in exp.glob("*.pth") if link.is_symlink()}
    assert Path("2epoch.pth") in links.values() and "valid.loss.best.pth" in links
    (exp / "2epoch.pth").unlink()
    for name, target in links.items():
        if target == Path("2epoch.pth"):
            (exp / name).unlink()
            (exp / name).symlink_to("1epoch.pth")
    train(tiny, exp, "--resume", "true", max_epoch=2)
    restored = weights(exp, 2)
    assert all(torch.equal(restored[name], expected[name]) for name in expected)
    assert {name: (exp / name).readlink() for name in links} == links


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
        "tests.trains_and_leaves",
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


NAN = float("nan")
STATS = {"a": [2.0, 6.0], "in_one": [NAN, 3.0], "nowhere": [NAN, NAN]}  # name -> of each process


def averages(rank):
    mine = {name: torch.tensor([values[rank]]) for name, values in STATS.items()}
    weight = torch.tensor([[10.0, 30.0][rank]])
    with averages_at_once():
        ours = espnet_trainer.recursive_average(mine, weight, True)
    return ours, recursive_average(mine, weight, True)


def test_statistics_that_travel_together_are_those_of_espnet(two_processes):
    for (stats, weight), (theirs, their_weight) in two_processes["averages"]:
        assert weight == their_weight == 40.0
        assert stats["a"] == 5.0
        torch.testing.assert_close(stats, theirs, rtol=0, atol=0, equal_nan=True)


def epoch(rank):
    """What is known of an epoch that averaged every step, and of one that does so in the end."""
    known = []
    for at_the_end in (False, True):
        reporter = SubReporter("train", 1, 0)
        for step in range(3):
            mine = {name: torch.tensor([values[rank] * (step + 1)]) for name, values in STATS.items()}
            if step != 1:
                mine["at_times"] = torch.tensor([float(rank)])
            weight = torch.tensor([[10.0, 30.0][rank] + step])
            reporter.register(*((mine, weight) if at_the_end else recursive_average(mine, weight, True)))
            reporter.register({"seconds": 0.5 + rank})
            reporter.next()
        if at_the_end:
            average_epoch(reporter)
        known.append({name: float(aggregate(values)) for name, values in reporter.stats.items()})
    return known


def test_statistics_may_meet_at_the_end_of_an_epoch(two_processes):
    for rank, (every_step, at_the_end) in enumerate(two_processes["epoch"]):
        assert at_the_end == pytest.approx(every_step, nan_ok=True, rel=1e-6)
        assert at_the_end["seconds"] == 0.5 + rank and at_the_end["at_times"] > 0.7


def lengths(rank):
    return [as_many_steps_everywhere(x) for x in ([1, 2], [1] * (2 + rank), iter([1, 2]))]


def test_processes_with_unequal_epochs_wait_for_each_other(two_processes):
    assert two_processes["lengths"] == [[True, False, False]] * 2


def shares(rank):
    """Whether an epoch of equally many steps is shared, one of unequal ones, and one of a model that trains alone."""
    model = WithLoss()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1)]
    found = []
    for trained, steps in ((DistributedDataParallel(model), 2), (DistributedDataParallel(model), rank), (model, 2)):
        with shared_training(trained, [1] * steps, optimizers, 2.0) as shared:
            found.append(shared is not None)
    return found


def test_epochs_are_shared_where_they_can_be(two_processes):
    assert two_processes["shares"] == [[True, False, False]] * 2


def all_of_them(rank):
    return {work.__name__: work(rank) for work in (averages, epoch, lengths, shares)}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of these found in two processes, which take long to begin."""
    ranks = in_processes(all_of_them, 2, tmp_path_factory.mktemp("processes"))
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}
