from dataclasses import replace
from pathlib import Path

from espnet_bestow.evaluate.results import ResultRow
from espnet_bestow.evaluate.tables import results_markdown, terminal_tables

ROW = ResultRow("bestow", "asr_en", "test", "wer", 3.254, 400, 2.5, 4.0, "score.sh a", "norm:x")
ROWS = [
    ROW,
    replace(ROW, test_set="test_noisy", value=9.0, low=8.0, high=10.0, n=40, command="score.sh b"),
    replace(ROW, task="sqa", metric="exact_match", value=91.0, low=90.0, high=92.0, signature=""),
    replace(ROW, task="ast_en-de", metric="bleu", value=60.0, low=58.0, high=62.0),
    replace(ROW, system="salm", value=5.0, signature=""),
]


def test_terminal_table_is_aligned():
    table = terminal_tables(ROWS[:4])
    lines = table.split("\n")
    assert lines[0] == "bestow"
    assert lines[1].split() == ["task", "metric", "test", "test_noisy"]
    assert [line.split()[0] for line in lines[3:]] == ["asr_en", "ast_en-de", "sqa"]
    assert "3.25 ±0.75" in lines[3] and "9.00 ±1.00" in lines[3]
    assert lines[4].endswith(" -")
    assert len({len(line) for line in lines[1:]}) == 1


def test_markdown_has_everything():
    text = results_markdown("Mini", ROWS, [("Loss", Path("images/loss.png"))])
    lines = text.split("\n")
    assert lines[0] == "# Mini"
    assert "## bestow" in lines and "## salm" in lines
    assert "| asr_en | WER % ↓ | 3.25 [2.50, 4.00] (n = 400) | 9.00 [8.00, 10.00] (n = 40) |" in lines
    assert "* test: `score.sh a`" in lines and "* test_noisy: `score.sh b`" in lines
    assert "* WER % (asr_en): `norm:x`" in lines
    assert "![Loss](images/loss.png)" in lines


def test_markdown_does_not_depend_on_the_order_of_runs():
    assert results_markdown("x", ROWS, []) == results_markdown("x", ROWS[::-1], [])


def test_unknown_metrics_and_tasks_are_shown_last():
    rows = [replace(ROW, task="aaa", metric="laal"), replace(ROW, metric="mos"), ROW]
    cells = [line.split(" | ")[:2] for line in results_markdown("x", rows, []).split("\n")]
    body = [c for c in cells if len(c) == 2][2:]
    assert body == [["| asr_en", "WER % ↓"], ["| asr_en", "mos ↑"], ["| aaa", "laal ↑"]]


def test_systems_stand_side_by_side_where_several_have_answered():
    lines = results_markdown("x", ROWS, []).split("\n")
    start = lines.index("## Side by side")
    table = [line for line in lines[start:] if line.startswith(("|", "###"))]
    assert table == [
        "### test",
        "| system | asr_en WER % ↓ | ast_en-de BLEU ↑ | sqa exact match % ↑ |",
        "| --- | ---: | ---: | ---: |",
        "| bestow | **3.25** | **60.00** | **91.00** |",
        "| salm | 5.00 | - | - |",
    ]
    terminal = terminal_tables(ROWS).split("\n\n")[-1].split("\n")
    assert terminal[0] == "side by side on test, * the best"
    assert terminal[3].split() == ["bestow", "*3.25", "*60.00", "*91.00"]


def test_one_system_has_no_one_beside_it():
    shown = results_markdown("x", ROWS[:4], []) + terminal_tables(ROWS[:4])
    assert "side by side" not in shown.lower()
