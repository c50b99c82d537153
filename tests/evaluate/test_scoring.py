import re

import pytest

from espnet_bestow.evaluate.key_text import read_key_text
from espnet_bestow.evaluate.scoring import (
    DETAIL_COLUMNS,
    read_examples,
    score_examples,
    write_details,
)

TEXT = "u1 the dog\nu2 drei Vögel\nu3 on light kitchen\nu4 the cat\n"
TASKS = "u1 asr_en\nu2 asr_de\nu3 command\nu4 asr_en\n"
HYP = "u4\nu1 the  dog\nu3 On light kitchen\nu2 drei vogel\n"


@pytest.fixture
def data_dir(tmp_path):
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    (tmp_path / "utt2task").write_text(TASKS)
    (tmp_path / "hyp").write_text(HYP, encoding="utf-8")
    return tmp_path


def test_scores_per_task(data_dir):
    results = score_examples(read_examples(data_dir, data_dir / "hyp", "asr_en"))
    found = {(r.task, s.metric): (s.value, s.n) for r in results for s in r.scores}
    assert found["asr_en", "wer"] == (50, 2), "an empty hypothesis deletes all words"
    assert found["asr_de", "wer"] == (50, 1)
    assert found["command", "accuracy"] == (100, 1)
    assert found.keys() >= {("asr_en", "cer"), ("asr_de", "cer")}


def test_details_hold_one_line_per_example(data_dir):
    results = score_examples(read_examples(data_dir, data_dir / "hyp", "asr_en"))
    path = data_dir / "scores.tsv"
    write_details(path, results)
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header.split("\t") == list(DETAIL_COLUMNS)
    rows = {line.split("\t")[0]: line.split("\t") for line in lines}
    assert rows["u2"][:4] == ["u2", "asr_de", "drei Vögel", "drei vogel"]
    assert rows["u2"][4].startswith("wer=50.00[sub=1 del=0 ins=0 ref=2] cer=10.00[")
    assert rows["u4"][3] == "" and rows["u4"][5] == "empty_hyp"
    assert rows["u1"][4].startswith("wer=0.00") and rows["u1"][5] == ""
    assert rows["u3"][4] == "accuracy=100.00"


def test_default_task_where_there_is_no_utt2task(data_dir):
    (data_dir / "utt2task").unlink()
    (result,) = score_examples(read_examples(data_dir, data_dir / "hyp", "ast_en-de"))
    assert result.task == "ast_en-de" and len(result.examples) == 4


def test_different_ids_are_one_error_with_both_counts(data_dir):
    hyp = data_dir / "hyp"
    hyp.write_text("u1 the dog\nx1 a\nx2 b\nx3 c\nx4 d\n")
    with pytest.raises(ValueError) as caught:
        read_examples(data_dir, hyp, "asr_en")
    assert re.fullmatch(
        r"ids differ: \S+/text has 4, \S+/hyp has 5; 3 missing from \S+/hyp \(u2, u3, u4\); "
        r"4 not in \S+/text \(x1, x2, x3, \.\.\.\)",
        str(caught.value),
    )


def test_task_file_must_cover_every_id(data_dir):
    (data_dir / "utt2task").write_text("u1 asr_en\n")
    with pytest.raises(ValueError, match=r"3 missing from \S+/utt2task \(u2, u3, u4\)"):
        read_examples(data_dir, data_dir / "hyp", "asr_en")
    (data_dir / "utt2task").write_text(TASKS.replace("command", ""))
    with pytest.raises(ValueError, match="utt2task: u3: expected one task name, got ''"):
        read_examples(data_dir, data_dir / "hyp", "asr_en")


def test_errors_of_a_metric_name_task_and_id(data_dir):
    (data_dir / "utt2task").write_text(TASKS.replace("asr_de", "ast_de"))
    with pytest.raises(ValueError, match=r"task 'ast_de' \(first id u2\): .*ast_<source>"):
        score_examples(read_examples(data_dir, data_dir / "hyp", "asr_en"))


def test_key_text_keeps_what_unicode_calls_blanks(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("a\t x\u3000y \r\nb\nc 1\u2028\x852\n".encode())
    assert read_key_text(path) == {"a": "x\u3000y", "b": "", "c": "1\u2028\x852"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a x\n\nb y\n", ":2: empty line"),
        (b"a x\na y\n", ":2: key 'a' appears a second time"),
        (b"", "holds no line"),
        (b"a \xff\n", "not UTF-8"),
    ],
)
def test_broken_key_text_names_file_and_line(tmp_path, content, message):
    path = tmp_path / "text"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"text.*{message}"):
        read_key_text(path)
