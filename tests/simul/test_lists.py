"""Data directories as lists for simuleval, logs put together, and the rate of speech."""

import json
from pathlib import Path

import pytest

from espnet_bestow.bin import frames_per_token, merge_instances, simuleval_lists
from espnet_bestow.datadir.directory import write_table
from espnet_bestow.simul.examples import read_examples

TEXT = {"a-asr": "one", "a-ast": "eins", "b-asr": "two", "c-sqa": "yes"}
TASKS = {"a-asr": "asr_en", "a-ast": "ast_en-de", "b-asr": "asr_en", "c-sqa": "sqa"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_table(folder / "text", TEXT)
    write_table(folder / "utt2task", TASKS)
    write_table(folder / "wav.scp", {key: f"{key[0]}.flac" for key in TEXT})
    return folder


def test_rows_of_wanted_tasks_are_numbered_within_their_task(data):
    examples = read_examples(data, ["asr", "ast_en-de"])
    assert [(e.key, e.task, e.index) for e in examples] == [
        ("a-asr", "asr_en", 0), ("a-ast", "ast_en-de", 0), ("b-asr", "asr_en", 1),
    ]  # fmt: skip
    assert [e.prompt for e in examples] == ["transcribe the english speech", "translate to german",
                                            "transcribe the english speech"]  # fmt: skip
    with pytest.raises(ValueError, match="no row has a task of ast_de-en; there are asr_en ast_en-de sqa"):
        read_examples(data, ["ast_de-en"])
    write_table(data / "text", {key: text for key, text in TEXT.items() if key != "b-asr"})
    with pytest.raises(ValueError, match="utterance 'b-asr': "):
        read_examples(data, ["asr"])


def test_lists_hold_the_same_rows_in_the_same_order(data, tmp_path):
    write_table(data / "prompt", {key: f"do {task}" for key, task in TASKS.items()})
    simuleval_lists.main(["--data_dir", str(data), "--output_dir", str(tmp_path / "lists")])
    read = {file.name: file.read_text().splitlines() for file in (tmp_path / "lists").iterdir()}
    assert read == {
        "source": ["a.flac", "a.flac", "b.flac"],
        "target": ["one", "eins", "two"],
        "prompt": ["do asr_en", "do ast_en-de", "do asr_en"],
        "key": ["a-asr", "a-ast", "b-asr"],
        "task": ["asr_en", "ast_en-de", "asr_en"],
    }


def test_some_rows_of_each_task(data, tmp_path):
    options = ["--data_dir", str(data), "--output_dir", str(tmp_path), "--tasks", "asr", "ast"]
    simuleval_lists.main([*options, "--max_rows", "1"])
    assert (tmp_path / "key").read_text() == "a-asr\na-ast\n"
    simuleval_lists.main([*options, "--max_rows", "5"])
    assert (tmp_path / "key").read_text() == "a-asr\nb-asr\na-ast\n"


def test_audio_that_simuleval_cannot_read_is_named(data, tmp_path):
    write_table(data / "wav.scp", dict.fromkeys(TEXT, "sox x -t wav - |"))
    with pytest.raises(SystemExit, match="utterance 'a-asr': simuleval reads whole files only"):
        simuleval_lists.main(["--data_dir", str(data), "--output_dir", str(tmp_path)])


def instance(index: int) -> str:
    line = {"index": index, "prediction": "one two", "delays": [320, 640], "elapsed": [330, 660], "reference": "one"}
    return json.dumps({**line, "prediction_length": 2, "source": ["a.wav"], "source_length": 640.0}) + "\n"


def test_logs_of_jobs_are_put_together_by_place_and_index(tmp_path, capsys):
    for job, indices in enumerate(((2, 0), (1,))):
        folder = tmp_path / f"job{job}" / "wait_k" / "asr_en"
        folder.mkdir(parents=True)
        (folder / "instances.log").write_text("".join(map(instance, indices)))
    (tmp_path / "job1" / "wait_k" / "sqa").mkdir()
    (tmp_path / "job1" / "wait_k" / "sqa" / "instances.log").touch()
    options = ["--inputs", str(tmp_path / "job0"), str(tmp_path / "job1"), "--output_dir", str(tmp_path / "out")]
    merge_instances.main([*options, "--instances", "3"])
    merged = tmp_path / "out" / "wait_k" / "asr_en" / "instances.log"
    assert [json.loads(line)["index"] for line in merged.read_text().splitlines()] == [0, 1, 2]
    assert not (tmp_path / "out" / "wait_k" / "sqa").exists()
    assert "asr_en/instances.log: 3 instances" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="asr_en: 3 instances, expected 4"):
        merge_instances.main([*options, "--instances", "4"])
    with pytest.raises(SystemExit, match=r"no instances\.log with anything in it"):
        merge_instances.main(["--inputs", str(tmp_path / "none"), "--output_dir", str(tmp_path / "out")])


def test_frames_per_token_is_the_median_of_streamed_tasks(data, tmp_path, capsys):
    # 10 frames and 4 tokens, 12 and 6, 20 and 4; the end token is not spoken.
    write_table(tmp_path / "speech_shape", {"a-asr": "12800", "a-ast": "15360", "b-asr": "25600", "c-sqa": "128000"})
    write_table(tmp_path / "text_shape", {"a-asr": "5", "a-ast": "7", "b-asr": "5", "c-sqa": "2"})
    options = ["--stats_dir", str(tmp_path)]
    frames_per_token.main([*options, "--utt2task", str(data / "utt2task")])
    assert capsys.readouterr().out.startswith("2 frames per token: median 2.50 of 3 rows")
    frames_per_token.main([*options, "--utt2task", str(data / "utt2task"), "--tasks", "ast_en-de"])
    assert capsys.readouterr().out.startswith("2 frames per token: median 2.00 of 1 rows")
    with pytest.raises(SystemExit, match="none of 4 rows has a task of label"):
        frames_per_token.main([*options, "--utt2task", str(data / "utt2task"), "--tasks", "label"])
