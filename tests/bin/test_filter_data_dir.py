import pytest

from espnet_bestow.bin.filter_data_dir import main
from espnet_bestow.datadir import DataDir, Problem, read_rejected, write_rejected
from tests.datadir.helpers import write_files
from tests.llm_fixtures import write_llm, write_tokenizer

UIDS = ("u1", "u2", "u3")


def table(**changes: str) -> str:
    """A value per id; ``u2=None`` leaves the id out."""
    values = dict.fromkeys(UIDS, "word") | changes
    return "".join(f"{uid} {value}\n" for uid, value in values.items() if value is not None)


@pytest.fixture
def folder(tmp_path):
    return write_files(
        tmp_path / "org",
        wav_scp=table(),
        text=table(),
        prompt=table(),
        utt2spk=table(),
        utt2task=table(),
        utt2num_samples=table(u1="16000", u2="16000", u3="16000"),
    )


def filter_dir(folder, *options: str) -> tuple[list[str], list[Problem]]:
    """Ids that are left, and what was listed."""
    out = folder.parent / "out"
    main(["--data_dir", str(folder), "--output_dir", str(out), *options])
    data = DataDir.read(out)
    # Whatever was dropped is gone from every file.
    assert data.id_problems() == []
    return data.uids(), read_rejected(out / "rejected.tsv")


def test_good_rows_pass(folder, capsys):
    assert filter_dir(folder) == (list(UIDS), [])
    assert "3 of 3 rows kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("text", table(u2=""), "empty text"),
        ("prompt", table(u2=""), "empty prompt"),
        ("utt2task", table(u2=""), "empty utt2task"),
        ("text", table(u2=None), "id not in text"),
        ("prompt", table(u2=None), "id not in prompt"),
        ("wav.scp", table(u2=None), "id not in wav.scp"),
        ("utt2num_samples", table(u1="16000", u2="800", u3="16000"), "too short"),
        ("utt2num_samples", table(u1="16000", u2="480001", u3="16000"), "too long"),
    ],
)
def test_bad_row_is_listed_and_dropped(folder, capsys, name, content, problem):
    write_files(folder, **{name: content})
    uids, problems = filter_dir(folder)
    assert uids == ["u1", "u3"]
    assert [(p.uid, p.problem) for p in problems] == [("u2", problem)]
    err = capsys.readouterr().err
    assert f"rejected: 1 {problem}" in err
    assert "utterance 'u2'" in err


def test_values_are_listed(folder):
    write_files(folder, utt2num_samples=table(u1="16000", u2="480001", u3="16000"))
    _, (problem,) = filter_dir(folder, "--max_wav_duration", "30")
    assert problem.value == "30.000 s, maximum 30 s"
    assert problem.file == "word"


def test_row_that_only_one_file_knows(folder):
    write_files(folder, text=table() + "u9 stray\n")
    uids, problems = filter_dir(folder)
    assert uids == list(UIDS)
    assert {p.uid for p in problems} == {"u9"}
    assert "id not in wav.scp" in {p.problem for p in problems}


def test_audio_problems_of_formatting_are_taken_over(folder):
    write_files(folder, wav_scp=table(u3=None))
    write_rejected(folder / "rejected.tsv", [Problem("u3", "x.wav", "zero samples", "0 samples")])
    uids, problems = filter_dir(folder)
    assert uids == ["u1", "u2"]
    # One problem, not a second one for the id that wav.scp lacks because of it.
    assert [p.problem for p in problems if p.uid == "u3"] == ["zero samples"]


def test_kinds_are_counted(folder, capsys):
    write_files(folder, text=table(u1="", u2=""), prompt=table(u2=None))
    uids, problems = filter_dir(folder)
    assert (uids, len(problems)) == (["u3"], 3)
    assert "1 of 3 rows kept; rejected: 2 empty text, 1 id not in prompt" in capsys.readouterr().err


def test_problems_can_be_fatal(folder, capsys):
    write_files(folder, text=table(u2=""))
    with pytest.raises(SystemExit) as caught:
        filter_dir(folder, "--skip_bad_utts", "false")
    assert "1 bad rows and --skip_bad_utts is false" in str(caught.value)
    # Listed all the same.
    assert len(read_rejected(folder.parent / "out" / "rejected.tsv")) == 1
    assert "empty text" in capsys.readouterr().err
    assert not (folder.parent / "out" / "wav.scp").exists()


def test_clean_data_is_not_fatal(folder):
    assert filter_dir(folder, "--skip_bad_utts", "false")[0] == list(UIDS)


def test_no_row_left_is_an_error(folder):
    with pytest.raises(SystemExit, match="no usable row is left"):
        filter_dir(folder, "--min_wav_duration", "5")


def test_text_over_the_context_of_an_llm(folder, tmp_path):
    llm = write_llm(tmp_path / "llm")
    write_files(folder, text=table(u2="the small dog " * 60))
    uids, problems = filter_dir(folder, "--llm", str(llm))
    assert uids == ["u1", "u3"]
    assert problems[0].problem == "over the LLM's context"
    assert "128 tokens" in problems[0].value


def test_prompt_without_room_for_an_answer(folder, tmp_path):
    llm = write_llm(tmp_path / "llm")
    write_files(folder, prompt=table(u3="translate to german " * 60))
    uids, problems = filter_dir(folder, "--llm", str(llm))
    assert uids == ["u1", "u2"]
    assert "no room for an answer" in problems[0].value


def test_template_of_the_training_configuration_counts(folder, tmp_path):
    llm = write_llm(tmp_path / "llm")
    config = tmp_path / "train.yaml"
    config.write_text("template: plain\ntemplate_conf:\n    max_length: 14\n")
    write_files(folder, text=table(u2="the small dog sees three red birds in the garden today"))
    uids, problems = filter_dir(folder, "--llm", str(llm), "--bestow_config", str(config))
    assert uids == ["u1", "u3"]
    assert "14 tokens" in problems[0].value


def test_context_of_an_llm_yet_to_be_trained(folder, tmp_path):
    write_tokenizer(tmp_path / "tokens")
    config = tmp_path / "llm.yaml"
    config.write_text("model: {model_type: llama, max_position_embeddings: 40}\n")
    write_files(folder, text=table(u2="the small dog " * 30))
    options = ["--tokenizer", str(tmp_path / "tokens"), "--llm_config", str(config)]
    uids, problems = filter_dir(folder, *options)
    assert uids == ["u1", "u3"]
    assert "40 tokens" in problems[0].value


def test_tokenizer_needs_the_configuration(folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        filter_dir(folder, "--tokenizer", "x")
    assert "--tokenizer and --llm_config belong together" in capsys.readouterr().err


def test_llm_that_does_not_exist(folder):
    with pytest.raises(SystemExit, match="no/such/llm"):
        filter_dir(folder, "--llm", "no/such/llm")
