"""The whole road with tone speech: plan, speak, write, find again."""

import json
import re
import time

import numpy as np
import pytest
import soundfile

from espnet_bestow.bin.bestow_corpus import main
from espnet_bestow.corpus.build import Order, build_corpus
from espnet_bestow.corpus.marker import CorpusExistsError
from espnet_bestow.corpus.testing import write_tone_corpus
from espnet_bestow.corpus.tiers import TIERS, Tier

SMOKE = TIERS["smoke"]
COLUMNS = ("wav.scp", "utt2spk", "text", "prompt", "utt2task", "src_text", "utt2num_samples")
FEW = Tier("few", {"train": 6, "test_noisy": 3, "test_long": 1}, lm_lines=20)


def read_table(path):
    return dict(line.split(maxsplit=1) for line in path.read_text("utf-8").splitlines())


def contents(directory):
    """All files except the audio paths, which name the directory."""
    return {
        path.relative_to(directory): path.read_bytes().replace(str(directory).encode(), b"DIR")
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    directory = tmp_path_factory.mktemp("smoke")
    start = time.process_time()
    assert build_corpus(Order(directory, SMOKE, renderer="tone", workers=1))
    assert time.process_time() - start < 5
    return directory


@pytest.mark.parametrize("split", SMOKE.utterances)
def test_data_dirs_are_sound(smoke, split):
    tables = {name: read_table(smoke / split / name) for name in COLUMNS}
    keys = list(tables["text"])
    assert keys == sorted(keys)
    assert all(list(table) == keys for table in tables.values())
    speakers = list(tables["utt2spk"].values())
    assert speakers == sorted(speakers)
    for key in keys:
        assert key.startswith(tables["utt2spk"][key] + "-")
        assert key.endswith("-" + tables["utt2task"][key])
        info = soundfile.info(tables["wav.scp"][key])
        assert (info.samplerate, info.channels, info.format, info.subtype) == (
            *(16000, 1),
            *("WAV", "PCM_16"),
        )
        assert info.frames == int(tables["utt2num_samples"][key])
    spk2utt = {line.split()[0]: line.split()[1:] for line in (smoke / split / "spk2utt").read_text().splitlines()}
    assert {key: speaker for speaker in spk2utt for key in spk2utt[speaker]} == tables["utt2spk"]


@pytest.mark.parametrize("split", ["train", "test_long"])
def test_ctm_holds_the_transcript_in_time(smoke, split):
    transcripts = read_table(smoke / split / "src_text")
    samples = read_table(smoke / split / "utt2num_samples")
    words: dict[str, list[tuple[float, float, str]]] = {}
    for line in (smoke / split / "ctm").read_text("utf-8").splitlines():
        key, channel, start, duration, word = line.split()
        assert channel == "1"
        words.setdefault(key, []).append((float(start), float(duration), word))
    assert {key: " ".join(w[2] for w in timed) for key, timed in words.items()} == transcripts
    for key, timed in words.items():
        starts = [start for start, _, _ in timed]
        assert starts == sorted(starts)
        assert min(duration for _, duration, _ in timed) > 0
        assert timed[-1][0] + timed[-1][1] <= int(samples[key]) / 16000 + 1e-3


def test_answers_agree_with_the_manifest(smoke):
    tables = {name: read_table(smoke / "train" / name) for name in ("text", "prompt", "src_text")}
    lines = (smoke / "train" / "manifest.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    assert len(entries) == SMOKE.utterances["train"]
    assert sum(len(entry["tasks"]) for entry in entries) == len(tables["text"])
    for entry in entries:
        english = entry["translation"] if entry["language"] == "de" else entry["transcript"]
        answer_of = {
            f"asr_{entry['language']}": entry["transcript"],
            "ast_en-de": entry["translation"],
            "ast_de-en": entry["translation"],
        }
        for task in entry["tasks"]:
            key = f"{entry['id']}-{task}"
            assert tables["src_text"][key] == entry["transcript"]
            answer = tables["text"][key]
            if task in answer_of:
                assert answer == answer_of[task]
            elif task == "sqa":
                assert re.search(rf"\b{answer}\b", english)
            else:
                _, thing, room = answer.split()
                assert {thing, room} <= set(entry["transcript"].split())


def test_long_and_joined_utterances_fill_their_seconds(smoke):
    for split, low, high in (("test_long", 8, 15), ("train", 0, 8)):
        lines = (smoke / split / "manifest.jsonl").read_text("utf-8").splitlines()
        joined = [entry for entry in map(json.loads, lines) if entry["sentences"] > 1]
        assert joined
        assert all(low <= entry["duration"] <= high for entry in joined)


def test_language_model_text(smoke):
    train = (smoke / "lm" / "train.txt").read_text("utf-8").splitlines()
    valid = (smoke / "lm" / "valid.txt").read_text("utf-8").splitlines()
    assert (len(train), len(valid)) == (SMOKE.lm_lines, 40)
    sentences = {line for line in valid if len(line.split()) > 7 and " the " in line}
    assert len(sentences) > 5
    spoken = {text for split in SMOKE.utterances for text in read_table(smoke / split / "src_text").values()}
    grammar = {text for text in spoken if re.search(r"\b(sees?|finds?|buys?|sieht|sehen)\b", text)}
    assert grammar
    assert not grammar & set(train + valid)


def test_same_bytes_whatever_the_number_of_workers(tmp_path):
    for name, workers in (("one", 1), ("two", 2)):
        build_corpus(Order(tmp_path / name, FEW, seed=4, renderer="tone", workers=workers))
    build_corpus(Order(tmp_path / "other", FEW, seed=5, renderer="tone", workers=1))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_a_finished_corpus_is_left_alone(tmp_path):
    order = Order(tmp_path, FEW, renderer="tone", workers=1)
    assert build_corpus(order)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not build_corpus(order)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_another_corpus_in_the_same_place_is_an_error(tmp_path):
    build_corpus(Order(tmp_path, FEW, renderer="tone", workers=1))
    before = contents(tmp_path)
    other = Order(tmp_path, FEW, seed=8, renderer="tone", workers=1)
    with pytest.raises(CorpusExistsError, match=r"seed 0.*not of.*seed 8.*--overwrite"):
        build_corpus(other)
    assert contents(tmp_path) == before
    replaced = Order(tmp_path, FEW, seed=8, renderer="tone", workers=1, overwrite=True)
    assert build_corpus(replaced)
    assert not build_corpus(other)
    audio = {path.name for path in (tmp_path / "audio" / "train").iterdir()}
    assert len(audio) == 6


def test_an_interrupted_build_starts_afresh(tmp_path):
    order = Order(tmp_path, FEW, renderer="tone", workers=1)
    build_corpus(order)
    complete = contents(tmp_path)
    (tmp_path / ".done").rename(tmp_path / ".building")
    (tmp_path / "audio" / "train" / "stale.wav").write_bytes(b"half")
    (tmp_path / "train" / "text").unlink()
    assert build_corpus(order)
    assert contents(tmp_path) == complete


def test_data_of_others_is_not_deleted(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "text").write_text("a b\n")
    with pytest.raises(CorpusExistsError, match="train exists"):
        build_corpus(Order(tmp_path, FEW, renderer="tone", workers=1))
    assert (tmp_path / "train" / "text").read_text() == "a b\n"


def test_tone_corpus_for_other_tests(tmp_path):
    start = time.process_time()
    directories = write_tone_corpus(tmp_path, utterances=12)
    assert time.process_time() - start < 1.5
    assert set(directories) == {"train", "valid"}
    paths = set(read_table(directories["train"] / "wav.scp").values())
    assert len(paths) == 12
    seconds = [soundfile.info(path).duration for path in paths]
    assert 0.3 < min(seconds) < max(seconds) < 2
    tasks = set(read_table(directories["train"] / "utt2task").values())
    assert {"asr_en", "asr_de", "ast_en-de", "ast_de-en", "sqa", "command"} == tasks
    signal, _ = soundfile.read(min(paths))
    assert np.abs(signal).max() > 0.2


def test_command_line(tmp_path, capsys):
    arguments = ["--tier", "smoke", "--renderer", "tone", "--nj", "1", "--output_dir"]
    assert main([*arguments, str(tmp_path / "data")]) == 0
    assert "built the smoke corpus" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "data")]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "data"), "--seed", "1"]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("bestow_corpus: ")
    assert "\n" not in error


@pytest.mark.parametrize(("option", "value"), [("--tier", "huge"), ("--renderer", "piano"), ("--nj", "0")])
def test_bad_options(tmp_path, capsys, option, value):
    with pytest.raises(SystemExit):
        main(["--output_dir", str(tmp_path), option, value])
    assert value in capsys.readouterr().err
