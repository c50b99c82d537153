"""Stage 1 of the LibriSpeech recipe on a corpus of noise that is laid out like the real one."""

from pathlib import Path

import pytest

from espnet_bestow.datadir import DataDir, read_rejected, read_table
from tests.datadir.helpers import lines, write_audio
from tests.egs2.shell import copy_recipe, prepare_data, run

pytestmark = pytest.mark.recipe

PARTS = ("train-clean-100", "dev-clean", "dev-other", "test-clean", "test-other")


def write_chapter(part: Path, speaker: str, chapter: str, *sentences: str) -> Path:
    """FLAC files and their transcripts; returns the file of transcripts."""
    folder = part / speaker / chapter
    folder.mkdir(parents=True)
    name = f"{speaker}-{chapter}"
    for number in range(len(sentences)):
        write_audio(folder / f"{name}-{number:04}.flac")
    transcripts = folder / f"{name}.trans.txt"
    transcripts.write_text("".join(f"{name}-{number:04} {words}\n" for number, words in enumerate(sentences)))
    return transcripts


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """One chapter in each part; that of training has three utterances of speaker 19."""
    root = tmp_path / "LibriSpeech"
    write_chapter(root / PARTS[0], "19", "198", "NORTHANGER ABBEY", "THIS LITTLE WORK", "IT'S READY")
    for number, part in enumerate(PARTS[1:]):
        write_chapter(root / part, str(84 + number), "121", f"SENTENCE {number}")
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return copy_recipe(tmp_path / "clone", "librispeech")


def test_every_utterance_becomes_a_row(recipe, corpus):
    done = prepare_data(recipe, "--librispeech", corpus)
    assert done.returncode == 0, done.stderr
    train = recipe / "data" / "train_clean_100"
    uids = ["19-198-0000", "19-198-0001", "19-198-0002"]
    folder = corpus / "train-clean-100" / "19" / "198"
    assert lines(train / "wav.scp") == [f"{uid} {folder / uid}.flac" for uid in uids]
    texts = ["northanger abbey", "this little work", "it's ready"]
    assert lines(train / "text") == [f"{uid} {text}" for uid, text in zip(uids, texts, strict=True)]
    assert lines(train / "src_text") == lines(train / "text")
    assert lines(train / "utt2spk") == [f"{uid} 19" for uid in uids]
    assert lines(train / "spk2utt") == [f"19 {' '.join(uids)}"]
    assert lines(train / "utt2task") == [f"{uid} asr_en" for uid in uids]
    # Nothing else: what is asked is the default of the task.
    assert not (train / "prompt").exists()
    assert read_table(recipe / "data" / "dev" / "utt2spk") == {"84-121-0000": "84", "85-121-0000": "85"}
    assert DataDir.read(recipe / "data" / "test_clean").uids() == ["86-121-0000"]
    assert DataDir.read(recipe / "data" / "test_other").uids() == ["87-121-0000"]
    assert f"{Path('data', 'train_clean_100')}: 3 rows, 1 speakers\n" in done.stderr


def test_run_names_the_set_after_the_hours_of_its_parts(recipe, corpus):
    write_chapter(corpus / "train-clean-360", "14", "208", "MORE")
    stage = ["--stage", "1", "--stop_stage", "1", "--warm", "false"]
    parts = ["--train_parts", "train-clean-100 train-clean-360"]
    done = run(recipe, "./run.sh", *stage, *parts, "--librispeech", corpus)
    assert done.returncode == 0, done.stderr
    assert len(DataDir.read(recipe / "data" / "train_460").uids()) == 4
    done = run(recipe, "./run.sh", "--oops", "1")
    assert (done.returncode, done.stderr) == (2, "error: unknown option --oops (see --help)\n")


def test_what_cannot_be_used_is_counted_and_listed(recipe, corpus):
    chapter = corpus / "train-clean-100" / "19" / "198"
    (chapter / "19-198-0001.flac").unlink()
    write_audio(chapter / "19-198-0007.flac")
    with (chapter / "19-198.trans.txt").open("a") as transcripts:
        transcripts.write("20-198-0000 FROM ELSEWHERE\n19-198-0003\n")
    write_audio(chapter / "19-198-0003.flac")
    done = prepare_data(recipe, "--librispeech", corpus)
    assert done.returncode == 0, done.stderr
    train = recipe / "data" / "train_clean_100"
    assert DataDir.read(train).uids() == ["19-198-0000", "19-198-0002"]
    assert {(p.uid, p.file, p.problem, p.value) for p in read_rejected(train / "rejected.tsv")} == {
        ("19-198-0001", f"{chapter}/19-198-0001.flac", "transcript without audio", "in 19-198.trans.txt"),
        ("19-198-0007", f"{chapter}/19-198-0007.flac", "audio without transcript", "in no *.trans.txt"),
        ("20-198-0000", f"{chapter}/19-198.trans.txt", "id of another chapter", "FROM ELSEWHERE"),
        ("19-198-0003", f"{chapter}/19-198.trans.txt", "empty text", "no words"),
    }
    assert "data/train_clean_100: 2 rows, 1 speakers; left out: 1 " in done.stderr
    assert "the first is utterance '19-198-0001': " in done.stderr


def no_folder(corpus: Path) -> tuple[Path, str]:
    return corpus / "none", f"{corpus}/none: no such folder; LibriSpeech should be in it"


def no_part(corpus: Path) -> tuple[Path, str]:
    (corpus / "dev-other").rename(corpus / "dev_other")
    there = "dev-clean dev_other test-clean test-other train-clean-100"
    return corpus, f"{corpus}/dev-other: no such folder (there are: {there})"


def no_transcripts(corpus: Path) -> tuple[Path, str]:
    (corpus / "test-clean" / "86" / "121" / "86-121.trans.txt").unlink()
    return corpus, f"{corpus}/test-clean: no <speaker>/<chapter>/<speaker>-<chapter>.trans.txt in it"


def twice(corpus: Path) -> tuple[Path, str]:
    transcripts = corpus / "dev-clean" / "84" / "121" / "84-121.trans.txt"
    transcripts.write_text("84-121-0000 ONE\n84-121-0000 TWO\n")
    return corpus, f"{transcripts}:2: duplicated key '84-121-0000'"


@pytest.mark.parametrize("damage", [no_folder, no_part, no_transcripts, twice])
def test_a_corpus_that_is_not_whole_is_one_error(recipe, corpus, damage):
    folder, message = damage(corpus)
    done = prepare_data(recipe, "--librispeech", folder)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {message}"


def test_the_corpus_must_be_named(recipe):
    done = prepare_data(recipe)
    assert done.returncode == 2
    assert done.stderr == "error: where is LibriSpeech? Set LIBRISPEECH in db.sh, or give --librispeech\n"
