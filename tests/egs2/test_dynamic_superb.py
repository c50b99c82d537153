"""Stage 1 of the Dynamic-SUPERB recipe on tasks of noise that are laid out as ESPnet's recipes write them."""

from pathlib import Path

import numpy as np
import pytest

from espnet_bestow.audio import read_audio
from espnet_bestow.datadir import DataDir, read_rejected
from tests.datadir.helpers import lines, write_audio, write_files
from tests.egs2.shell import copy_recipe, prepare_data, run

pytestmark = pytest.mark.recipe

SEEN, PAIRS, UNSEEN = "AccentClassification_Accentdb", "SpeakerVerification_Librispeech", "NoiseDetection_VCTK"


def write_task(root: Path, name: str, rows: int, recordings: int = 1) -> Path:
    """A folder of a task; with two recordings the second is at another rate."""
    folder = root / name
    (folder / "wav").mkdir(parents=True)
    keys = [f"{number:06}" for number in range(rows)]
    audio = {}
    for key in keys:
        names = [folder / "wav" / f"{key}_pair{n}.wav" for n in range(recordings)]
        audio[key] = " ".join(str(write_audio(file, 0.2, 8000 * (1 + n))) for n, file in enumerate(names))
    write_files(
        folder,
        wav_scp="".join(f"{key} {audio[key]}\n" for key in keys),
        utt2spk="".join(f"{key} {key}\n" for key in keys),
        **{
            "text.input": "".join(f"{key} Which of them is it? Answer {key}.\n" for key in keys),
            "text.output": "".join(f"{key} Label {key[-1]}\n" for key in keys),
        },
    )
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    root = tmp_path / "tasks"
    write_task(root, SEEN, 22)
    write_task(root, PAIRS, 2, recordings=2)
    write_task(root, UNSEEN, 3)
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return copy_recipe(tmp_path / "clone", "dynamic_superb")


def prepare(recipe: Path, corpus: Path, *options: str | Path):
    return prepare_data(recipe, "--dynamic_superb", corpus, "--nj", "1", *options)


def test_unseen_tasks_are_a_test_set_of_their_own(recipe, corpus):
    done = prepare(recipe, corpus, "--unseen_tasks", UNSEEN)
    assert done.returncode == 0, done.stderr
    sets = {folder: DataDir.read(recipe / "data" / folder) for folder in ("train", "valid", "test_seen", "test_unseen")}
    assert sets["valid"].uids() == [f"{SEEN}-000000", f"{SEEN}-000020", f"{PAIRS}-000000"]
    assert sets["test_seen"].uids() == [f"{SEEN}-000010"]
    assert len(sets["train"].uids()) == 19 + 1
    test = sets["test_unseen"]
    uids = [f"{UNSEEN}-00000{number}" for number in range(3)]
    assert test.tables == {
        "wav.scp": {uid: f"{corpus / UNSEEN}/wav/{uid[-6:]}_pair0.wav" for uid in uids},
        "utt2spk": {uid: uid for uid in uids},
        "utt2task": dict.fromkeys(uids, f"label_{UNSEEN}"),
        "text": {uid: f"Label {uid[-1]}" for uid in uids},
        "prompt": {uid: f"Which of them is it? Answer {uid[-6:]}." for uid in uids},
    }


def test_several_recordings_of_a_row_are_joined_with_silence_between_them(recipe, corpus):
    done = prepare(recipe, corpus, "--unseen_tasks", UNSEEN, "--nj", "2")
    assert done.returncode == 0, done.stderr
    joined = DataDir.read(recipe / "data" / "train").tables["wav.scp"][f"{PAIRS}-000001"]
    samples = read_audio(recipe / joined)
    assert len(samples) == 3200 + 8000 + 3200
    parts = [read_audio(corpus / PAIRS / "wav" / f"000001_pair{number}.wav") for number in range(2)]
    assert np.abs(samples - np.concatenate([parts[0], np.zeros(8000, np.float32), parts[1]])).max() < 1e-4


def test_only_what_has_changed_is_joined_again(recipe, corpus):
    assert prepare(recipe, corpus, "--unseen_tasks", UNSEEN).returncode == 0
    joined = sorted((recipe / "data" / "audio" / PAIRS).iterdir())
    times = [file.stat().st_mtime_ns for file in joined]
    assert [file.suffix for file in joined] == [".flac", ".flac"]
    again = prepare(recipe, corpus, "--unseen_tasks", UNSEEN)
    assert again.returncode == 0 and "join" not in again.stderr
    assert [file.stat().st_mtime_ns for file in joined] == times
    write_audio(corpus / PAIRS / "wav" / "000001_pair1.wav", 0.3)
    joined[0].write_bytes(joined[0].read_bytes()[:20])
    changed = prepare(recipe, corpus, "--unseen_tasks", UNSEEN)
    assert changed.returncode == 0, changed.stderr
    assert [len(read_audio(file)) for file in joined] == [3200 + 8000 + 3200, 3200 + 8000 + 4800]


def test_tasks_can_have_names_by_which_they_are_scored(recipe, corpus):
    names = recipe / "names.txt"
    names.write_text(f"{UNSEEN} label_DEG\n{SEEN} label_PRL\n")
    stage = ["--stage", "1", "--stop_stage", "1", "--warm", "false"]
    options = ["--dynamic_superb", corpus, "--unseen_tasks", f"{UNSEEN} {PAIRS}", "--task_names", "names.txt"]
    done = run(recipe, "./run.sh", *stage, *options)
    assert done.returncode == 0, done.stderr
    tasks = [set(DataDir.read(recipe / "data" / name).tables["utt2task"].values()) for name in ("train", "test_unseen")]
    assert tasks == [{"label_PRL"}, {"label_DEG", f"label_{PAIRS}"}]
    names.write_text("Other label_DEG\n")
    done = prepare(recipe, corpus, "--unseen_tasks", UNSEEN, "--task_names", "names.txt")
    assert done.stderr == "error: names.txt: 'Other label_DEG' is not '<folder of a task> <name>'\n"
    done = run(recipe, "./run.sh", "--oops", "1")
    assert (done.returncode, done.stderr) == (2, "error: unknown option --oops (see --help)\n")


def test_known_speakers_begin_the_ids_of_their_rows(recipe, corpus):
    (corpus / UNSEEN / "utt2spk").write_text("000000 p1\n000001 p2\n000002 p1\n")
    assert prepare(recipe, corpus, "--unseen_tasks", UNSEEN).returncode == 0
    assert lines(recipe / "data" / "test_unseen" / "spk2utt") == [
        f"{UNSEEN}-p1 {UNSEEN}-p1-000000 {UNSEEN}-p1-000002",
        f"{UNSEEN}-p2 {UNSEEN}-p2-000001",
    ]


def test_what_cannot_be_used_is_counted_and_listed(recipe, corpus):
    folder = corpus / SEEN
    (folder / "wav" / "000003_pair0.wav").unlink()
    outputs, inputs = folder / "text.output", folder / "text.input"
    outputs.write_text(outputs.read_text().replace("000004 Label 4\n", "").replace("000005 Label 5\n", "000005\n"))
    inputs.write_text(inputs.read_text().replace("000006 Which of them is it? Answer 000006.", "000006"))
    broken = corpus / PAIRS / "wav" / "000000_pair1.wav"
    broken.write_text("no audio")
    done = prepare(recipe, corpus, "--unseen_tasks", UNSEEN)
    assert done.returncode == 0, done.stderr
    rejected = read_rejected(recipe / "data" / "train" / "rejected.tsv")
    assert {(p.uid, p.file, p.problem) for p in rejected} == {
        (f"{SEEN}-000003", f"{folder}/wav.scp", "missing file"),
        (f"{SEEN}-000004", f"{folder}/text.output", "id not in text.output"),
        (f"{SEEN}-000005", f"{folder}/text.output", "empty text"),
        (f"{SEEN}-000006", f"{folder}/text.input", "empty prompt"),
        (f"{PAIRS}-000000", str(broken), "not an audio file"),
    }
    assert "data/train: 16 rows, 16 speakers; left out: 1 " in done.stderr


def test_line_breaks_in_an_instruction_are_blanks(recipe, corpus):
    inputs = corpus / UNSEEN / "text.input"
    # The last row is in both texts, and is named where its recording is missed.
    text = "000000 Which?\n\nOptions:\n- yes\n000001 Which?\nOptions:\n- no\n000002 Which?\n000007 Which?\n"
    inputs.write_text(text)
    with (corpus / UNSEEN / "text.output").open("a") as outputs:
        outputs.write("000007 Label 7\n")
    done = prepare(recipe, corpus, "--unseen_tasks", UNSEEN)
    assert done.returncode == 0, done.stderr
    assert DataDir.read(recipe / "data" / "test_unseen").tables["prompt"] == {
        f"{UNSEEN}-000000": "Which? Options: - yes",
        f"{UNSEEN}-000001": "Which? Options: - no",
        f"{UNSEEN}-000002": "Which?",
    }
    assert f"{inputs}: 4 lines without an id continue the one before them\n" in done.stderr
    rejected = read_rejected(recipe / "data" / "test_unseen" / "rejected.tsv")
    assert {(p.uid, p.problem) for p in rejected} == {
        (f"{UNSEEN}-000007", "id not in wav.scp"),
        (f"{UNSEEN}-000007", "id not in utt2spk"),
    }


@pytest.mark.parametrize(
    ("unseen", "message"),
    [
        ("", f"--unseen_tasks must name tasks that training does not see (there are: {SEEN} {UNSEEN} {PAIRS})"),
        ("Other", f"no Other/wav.scp (there are: {SEEN} {UNSEEN} {PAIRS})"),
        (f"{SEEN},{UNSEEN},{PAIRS}", "all tasks are unseen: nothing is left for training"),
    ],
)
def test_some_tasks_must_be_seen_and_some_unseen(recipe, corpus, unseen, message):
    done = prepare(recipe, corpus, "--unseen_tasks", unseen)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {corpus}: {message}")


def no_folder(corpus: Path) -> tuple[Path, str]:
    return corpus / "none", f"{corpus}/none: no such folder; a folder for each task should be in it"


def no_labels(corpus: Path) -> tuple[Path, str]:
    (corpus / SEEN / "text.output").unlink()
    return corpus, f"{corpus / SEEN}/text.output: missing file"


def twice(corpus: Path) -> tuple[Path, str]:
    (corpus / SEEN / "text.input").write_text("000001 a\n000001 b\n")
    return corpus, f"{corpus / SEEN}/text.input:2: duplicated key '000001'"


@pytest.mark.parametrize("damage", [no_folder, no_labels, twice])
def test_a_corpus_that_is_not_whole_is_one_error(recipe, corpus, damage):
    folder, message = damage(corpus)
    done = prepare(recipe, folder, "--unseen_tasks", UNSEEN)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {message}"


def test_the_corpus_must_be_named(recipe):
    done = prepare_data(recipe)
    assert done.returncode == 2
    assert done.stderr == "error: where is Dynamic-SUPERB? Set DYNAMIC_SUPERB in db.sh, or give --dynamic_superb\n"
