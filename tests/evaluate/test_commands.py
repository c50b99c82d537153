"""The two command lines of this room, as a recipe calls them."""

import json
import time

import pytest

from espnet_bestow.bin import bestow_report, bestow_score


@pytest.fixture
def exp(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "text").write_text("u1 the dog\nu2 the cat\nu3 drei vögel\n", encoding="utf-8")
    (data / "utt2task").write_text("u1 asr_en\nu2 asr_en\nu3 asr_de\n")
    decode = tmp_path / "exp" / "bestow" / "decode"
    decode.mkdir(parents=True)
    (decode / "text").write_text("u1 the dog\nu2\nu3 drei vögel\n", encoding="utf-8")
    history = [{"epoch": 1, "train": {"loss": 2.0, "acc": 0.5}, "valid": {"loss": 2.5, "acc": 0.4}}]
    (tmp_path / "exp" / "bestow" / "history.json").write_text(json.dumps(history))
    return tmp_path / "exp"


def score_command(exp, *more: str) -> list[str]:
    return [
        *("--data_dir", str(exp.parent / "data"), "--hyp", str(exp / "bestow" / "decode" / "text")),
        *("--test_set", "test", "--system", "bestow", "--results", str(exp / "results.json")),
        *more,
    ]


def test_score_then_report(exp, capsys):
    bestow_score.main(score_command(exp, "--command", "run.sh --stage 13"))
    printed = capsys.readouterr().out
    assert "asr_en  WER % ↓  50.00" in printed
    assert "1 of 3 hypotheses are empty" in printed
    assert (exp / "bestow" / "decode" / "scores.test.tsv").exists()
    rows = json.loads((exp / "results.json").read_text())
    found = {(r["task"], r["metric"]): r["value"] for r in rows}
    assert found["asr_en", "wer"] == 50 and found["asr_de", "wer"] == 0
    assert {r["command"] for r in rows} == {"run.sh --stage 13"}

    start = time.monotonic()
    bestow_report.main(["--exp", str(exp), "--title", "Mini corpus"])
    assert time.monotonic() - start < 8
    printed = capsys.readouterr().out
    images = sorted(path.name for path in (exp / "images").iterdir())
    assert images == ["loss.png", "scores.png", "token_accuracy.png"]
    for path in [exp / "RESULTS.md", *(exp / "images").iterdir()]:
        assert f"wrote {path}" in printed
    markdown = (exp / "RESULTS.md").read_text(encoding="utf-8")
    assert markdown.startswith("# Mini corpus\n") and "(images/loss.png)" in markdown


def test_scoring_again_replaces_and_other_test_sets_stay(exp, capsys):
    bestow_score.main(score_command(exp))
    first = json.loads((exp / "results.json").read_text())
    assert first[0]["command"].startswith("python -m espnet_bestow.bin.bestow_score --data_dir ")
    again = score_command(exp)
    again[again.index("test")] = "test_noisy"
    bestow_score.main(again)
    bestow_score.main(score_command(exp))
    rows = json.loads((exp / "results.json").read_text())
    assert rows[: len(first)] == first and len(rows) == 2 * len(first)
    assert capsys.readouterr().err == ""


def test_report_is_reproducible_and_works_without_scores(exp, capsys):
    bestow_report.main(["--exp", str(exp)])
    first = {p: p.read_bytes() for p in exp.rglob("*") if p.is_file()}
    assert "![Loss](images/loss.png)" in (exp / "RESULTS.md").read_text()
    bestow_report.main(["--exp", str(exp)])
    assert first == {p: p.read_bytes() for p in exp.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--hyp", "nowhere/text", "nowhere/text"),
        ("--test_set", "a/b", "--test_set must be a plain name, got 'a/b'"),
    ],
)
def test_bad_input_ends_in_one_line(exp, option, value, message):
    command = score_command(exp)
    command[command.index(option) + 1] = value
    with pytest.raises(SystemExit) as caught:
        bestow_score.main(command)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (exp / "results.json").exists()


def test_missing_hypothesis_writes_no_scores(exp):
    (exp / "bestow" / "decode" / "text").write_text("u1 the dog\n")
    with pytest.raises(SystemExit, match=r"bestow_score: ids differ: .*2 missing .*\(u2, u3\)"):
        bestow_score.main(score_command(exp))
    assert not (exp / "results.json").exists()


def test_report_of_nothing_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="neither results"):
        bestow_report.main(["--exp", str(tmp_path)])
