"""Stage 1 of the CoVoST 2 recipe on clips of noise that are laid out like Common Voice 4 and CoVoST 2."""

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_bestow.audio import read_audio
from espnet_bestow.datadir import DataDir, read_rejected, read_table
from tests.egs2.shell import copy_recipe, prepare_data, run

pytestmark = [
    pytest.mark.recipe,
    pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="this libsndfile cannot write MP3"),
]

HEADER = "path\tsentence\ttranslation\tclient_id"


def table(*rows: tuple[str, str, str, str]) -> str:
    """A split as get_covost_splits.py writes it."""
    return "\n".join([HEADER, *("\t".join(row) for row in rows)]) + "\n"


def speaker(client_id: str, language: str) -> str:
    return f"{language}-{hashlib.sha256(client_id.encode()).hexdigest()[:12]}"


def write_clips(corpus: Path, language: str, *numbers: int) -> None:
    folder = corpus / "cv" / language / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        noise = np.random.default_rng(number).normal(0, 0.05, 24000)
        soundfile.write(folder / f"common_voice_{language}_{number}.mp3", noise, 48000, format="MP3")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """en-de, en-ca and de-en, each with two clips for training and one each for validation and test."""
    root = tmp_path / "corpora"
    (root / "covost").mkdir(parents=True)
    write_clips(root, "en", 1, 2, 3, 4)
    write_clips(root, "de", 5, 6, 7, 8)
    ann, bob = "a" * 128, "b" * 128
    for source, target, first in (("en", "de", 1), ("en", "ca", 1), ("de", "en", 5)):
        clips = [f"common_voice_{source}_{number}.mp3" for number in range(first, first + 4)]
        rows = [
            (clip, f'{source}: \\"{n}\\", said he.', f"{target}: {n}!", who)
            for n, (clip, who) in enumerate(zip(clips, (bob, ann, ann, bob), strict=True))
        ]
        for split, chosen in (("train", rows[:2]), ("dev", rows[2:3]), ("test", rows[3:])):
            (root / "covost" / f"covost_v2.{source}_{target}.{split}.tsv").write_text(table(*chosen))
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return copy_recipe(tmp_path / "clone", "covost2")


def prepare(recipe: Path, corpus: Path, *options: str):
    return prepare_data(recipe, "--commonvoice", corpus / "cv", "--covost2", corpus / "covost", *options)


def test_a_clip_has_a_row_for_its_transcript_and_for_each_translation(recipe, corpus):
    done = prepare(recipe, corpus, "--directions", "en-de en-ca de-en")
    assert done.returncode == 0, done.stderr
    train = DataDir.read(recipe / "data" / "train")
    ann, bob = speaker("a" * 128, "en"), speaker("b" * 128, "en")
    # Case, punctuation and quotes are those of the corpus.
    assert {uid: text for uid, text in train.tables["text"].items() if uid.startswith("en")} == {
        f"{bob}-1-ast_en-de": "de: 0!",
        f"{bob}-1-ast_en-ca": "ca: 0!",
        f"{bob}-1-asr_en": 'en: "0", said he.',
        f"{ann}-2-ast_en-de": "de: 1!",
        f"{ann}-2-ast_en-ca": "ca: 1!",
        f"{ann}-2-asr_en": 'en: "1", said he.',
    }
    assert train.tables["src_text"][f"{bob}-1-ast_en-ca"] == 'en: "0", said he.'
    assert train.tables["utt2task"] == {uid: uid.split("-", 3)[3] for uid in train.uids()}
    assert train.tables["wav.scp"][f"{ann}-2-asr_en"] == str(corpus / "cv/en/clips/common_voice_en_2.mp3")
    assert len(read_audio(train.tables["wav.scp"][f"{ann}-2-asr_en"])) == pytest.approx(8000, abs=1200)
    # The same client in another language is another speaker, and ids begin with speakers.
    assert len(train.uids()) == 10 and len(read_table(recipe / "data" / "train" / "spk2utt")) == 4
    assert all(uid.startswith(f"{who}-") for uid, who in train.tables["utt2spk"].items())
    assert train.id_problems() == []


def test_each_direction_has_a_test_set_and_each_language_one_test_of_recognition(recipe, corpus):
    directions = ["--directions", "en-de,en-ca,de-en"]
    stage = ["--stage", "1", "--stop_stage", "1", "--warm", "false"]
    folders = ["--commonvoice", corpus / "cv", "--covost2", corpus / "covost"]
    done = run(recipe, "./run.sh", *directions, *stage, *folders)
    assert done.returncode == 0, done.stderr
    tasks = {
        folder.name: sorted(DataDir.read(folder).tables["utt2task"].values()) for folder in (recipe / "data").iterdir()
    }
    assert tasks.pop("train").count("asr_en") == 2
    assert tasks == {
        "dev": ["asr_de", "asr_en", "ast_de-en", "ast_en-ca", "ast_en-de"],
        "test_en-de": ["asr_en", "ast_en-de"],
        "test_en-ca": ["ast_en-ca"],
        "test_de-en": ["asr_de", "ast_de-en"],
    }
    done = run(recipe, "./run.sh", "--oops", "1")
    assert (done.returncode, done.stderr) == (2, "error: unknown option --oops (see --help)\n")


def test_the_whole_table_is_divided_as_covost_divides_it(recipe, corpus):
    for file in (corpus / "covost").iterdir():
        file.unlink()
    clips = [f"common_voice_de_{number}.mp3" for number in (5, 6, 7, 8, 9)]
    splits = ("train", "train_covost", "dev", "test", "test_covost")
    rows = [f"{clip}\tEnglish {n}.\t{split}" for n, (clip, split) in enumerate(zip(clips, splits, strict=True))]
    (corpus / "covost" / "covost_v2.de_en.tsv").write_text("\n".join(["path\ttranslation\tsplit", *rows, "x\ty"]))
    said = [f"anna\t{clip}\tDeutsch {n}.\t2" for n, clip in enumerate(clips) if n != 1]
    (corpus / "cv" / "de" / "validated.tsv").write_text("\n".join(["client_id\tpath\tsentence\tup_votes", *said]))
    done = prepare(recipe, corpus, "--directions", "de-en")
    assert done.returncode == 0, done.stderr
    anna = speaker("anna", "de")
    for name, number, n in (("train", 5, 0), ("dev", 7, 2), ("test_de-en", 8, 3)):
        texts = DataDir.read(recipe / "data" / name).tables["text"]
        assert texts == {f"{anna}-{number}-asr_de": f"Deutsch {n}.", f"{anna}-{number}-ast_de-en": f"English {n}."}
    rejected = read_rejected(recipe / "data" / "train" / "rejected.tsv")
    assert {(p.uid, p.problem) for p in rejected} == {
        ("common_voice_de_6.mp3", "clip not in validated.tsv"),
        ("line 7", "broken line"),
    }


def test_what_cannot_be_used_is_counted_and_listed(recipe, corpus):
    clips = corpus / "cv" / "en" / "clips"
    (clips / "common_voice_en_2.mp3").unlink()
    bob = "b" * 128
    more = [
        ("common_voice_en_3.mp3", "Said.", " ", bob),
        ("common_voice_en_3.mp3", "Said again.", "Nochmals.", bob),
        ("common_voice_en_4.mp3", "Cut", "off"),
    ]
    file = corpus / "covost" / "covost_v2.en_de.train.tsv"
    with file.open("a", newline="") as train:
        train.write("".join("\t".join(row) + "\n" for row in more))
        train.write("common_voice_en_4.mp3\tReturned\rto\tZurück\tb\n")
    done = prepare(recipe, corpus, "--directions", "en-de en-ca")
    assert done.returncode == 0, done.stderr
    rejected = {(p.uid, p.file, p.problem, p.value) for p in read_rejected(recipe / "data" / "train" / "rejected.tsv")}
    who = speaker(bob, "en")
    assert rejected == {
        # Once, though another direction names it too.
        ("common_voice_en_2.mp3", f"{clips}/common_voice_en_2.mp3", "missing clip", f"named in {file}:3"),
        (f"{who}-3-ast_en-de", f"{file}:4", "empty text", "no words"),
        (f"{who}-3-ast_en-de", f"{file}:5", "clip comes twice", "common_voice_en_3.mp3"),
        ("line 6", str(file), "broken line", "3 cells instead of 4: common_voice_en_4.mp3 Cut off"),
        (
            "line 7",
            str(file),
            "broken line",
            "new-line character seen in unquoted field: common_voice_en_4.mp3 Returned to Zurück b",
        ),
    }
    texts = DataDir.read(recipe / "data" / "train").tables["text"]
    assert texts[f"{who}-3-asr_en"] == "Said."
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("data/train: ")]
    assert "4 rows, 1 speakers; left out: " in line
    assert "1 missing clip" in line


def no_split(corpus: Path) -> str:
    file = corpus / "covost" / "covost_v2.en_de.dev.tsv"
    file.unlink()
    return f"{file}: no such file"


def no_clips(corpus: Path) -> str:
    folder = corpus / "cv" / "en" / "clips"
    folder.rename(folder.parent / "clip")
    return f"{folder}: no such folder; Common Voice's clips should be in it"


def no_column(corpus: Path) -> str:
    file = corpus / "covost" / "covost_v2.en_de.train.tsv"
    file.write_text("path\tsentence\tclient_id\n")
    return f"{file}:1: no column 'translation' (columns: path sentence client_id)"


def old_line_ends(corpus: Path) -> str:
    file = corpus / "covost" / "covost_v2.en_de.train.tsv"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r"))
    return f"{file}:1: new-line character seen in unquoted field"


def not_utf8(corpus: Path) -> str:
    file = corpus / "covost" / "covost_v2.en_de.test.tsv"
    file.write_bytes(b"path\xff")
    return f"{file}: not UTF-8 (invalid start byte at byte 4)"


def no_rows(corpus: Path) -> str:
    (corpus / "covost" / "covost_v2.en_de.test.tsv").write_text(HEADER)
    return "data/test_en-de: no row is left"


@pytest.mark.parametrize("damage", [no_split, no_clips, no_column, old_line_ends, not_utf8, no_rows])
def test_a_corpus_that_is_not_whole_is_one_error(recipe, corpus, damage):
    message = damage(corpus)
    done = prepare(recipe, corpus, "--directions", "en-de")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"error: {message}"


@pytest.mark.parametrize(
    ("direction", "message"),
    [
        ("de-fr", "error: direction 'de-fr' is neither en-<language> nor <language>-en"),
        ("en-en", "error: direction 'en-en' is neither en-<language> nor <language>-en"),
        ("xx-en", "error: task 'ast_xx-en': unknown language 'xx' (known: ar "),
        ("zh-CN-en", "/zh-CN/clips: no such folder"),
    ],
)
def test_a_direction_must_be_one_of_covost(recipe, corpus, direction, message):
    done = prepare(recipe, corpus, "--directions", direction)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("MeCab") is not None, reason="sacrebleu[ja] is installed")
def test_a_language_that_could_not_be_scored_is_an_error_before_training(recipe, corpus):
    done = prepare(recipe, corpus, "--directions", "en-de en-ja")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: direction 'en-ja': bleu for 'ja': Japanese tokenization requires extra dependencies")
    assert line.endswith("pip install sacrebleu[ja]")
    assert not (recipe / "data").exists()


def test_both_corpora_must_be_named(recipe, corpus):
    done = prepare_data(recipe)
    assert done.stderr == "error: where is Common Voice? Set COMMONVOICE in db.sh, or give --commonvoice\n"
    done = prepare_data(recipe, "--commonvoice", corpus)
    assert done.stderr == "error: where is CoVoST 2? Set COVOST2 in db.sh, or give --covost2\n"
