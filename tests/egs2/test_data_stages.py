"""Stages 1 to 4 of the mini recipe on the tone corpus, with data damaged between stages 1 and 3."""

import shutil
import sys
from pathlib import Path

import pytest

from espnet_bestow.datadir import DataDir, read_rejected
from tests.egs2.shell import copy_recipe, run

pytestmark = pytest.mark.recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the recipe in which stage 1 is done."""
    folder = copy_recipe(tmp_path_factory.mktemp("clone"), "mini")
    options = ["--local_data_opts", "--tier smoke --nj 2 --renderer tone"]
    done = stages(folder, 1, 1, *options)
    assert done.returncode == 0, done.stderr
    return folder


def stages(folder: Path, first: int, last: int, *options: str):
    words = ["--stage", str(first), "--stop_stage", str(last), "--python", sys.executable]
    return run(folder, "./run.sh", *words, *options)


def test_clean_data_passes_and_is_not_done_again(recipe):
    done = stages(recipe, 2, 4)
    assert done.returncode == 0, done.stderr
    for name in ("train", "valid", "test", "test_unseen", "test_noisy", "test_long"):
        data = DataDir.read(recipe / "dump" / "raw" / name)
        source = DataDir.read(recipe / "data" / name)
        assert data.uids() == source.uids()
        assert data.tables["utt2num_samples"] == source.tables["utt2num_samples"]
    again = stages(recipe, 2, 4)
    assert again.returncode == 0
    assert again.stdout.count("already done") == 12
    assert again.stderr == ""


def test_speed_perturbation_enlarges_the_training_set(recipe, tmp_path):
    options = ["--speed_perturb_factors", "0.9 1.0 1.1", "--dumpdir", str(tmp_path)]
    done = stages(recipe, 2, 4, *options, "--test_sets", "test")
    assert done.returncode == 0, done.stderr
    rows = len(DataDir.read(recipe / "data" / "train").uids())
    assert len(DataDir.read(tmp_path / "raw" / "train").uids()) == 3 * rows


def test_damaged_data_is_listed_and_can_be_fatal(recipe, tmp_path):
    for name in ("train", "valid"):
        shutil.copytree(recipe / "data" / name, recipe / "data" / f"bad_{name}")
    folder = recipe / "data" / "bad_train"
    first, second, *_ = DataDir.read(folder).uids()
    scp, text = folder / "wav.scp", folder / "text"
    scp.write_text(scp.read_text().replace(f"{first} ", f"{first} no/such/", 1))
    words = DataDir.read(folder).tables["text"][second]
    text.write_text(text.read_text().replace(f"{second} {words}\n", f"{second}\n", 1))

    options = ["--train_set", "bad_train", "--valid_set", "bad_valid", "--test_sets", ""]
    options += ["--dumpdir", str(tmp_path)]
    done = stages(recipe, 3, 4, *options)
    assert done.returncode == 0, done.stderr
    problems = read_rejected(tmp_path / "raw" / "bad_train" / "rejected.tsv")
    assert {(p.uid, p.problem) for p in problems} == {
        (first, "missing file"),
        (second, "empty text"),
    }
    assert f"utterance '{second}': " in done.stderr
    assert {first, second}.isdisjoint(DataDir.read(tmp_path / "raw" / "bad_train").uids())

    fatal = stages(recipe, 3, 4, *options, "--skip_bad_utts", "false")
    assert fatal.returncode == 1
    assert "2 bad rows and --skip_bad_utts is false\n" in fatal.stderr
    assert fatal.stderr.endswith("error: stage 4: 1 sets could not be used, see above\n")
