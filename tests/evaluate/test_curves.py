import json
from dataclasses import replace

import pytest
from matplotlib.image import imread

from espnet_bestow.evaluate.curve_plots import plot_all_curves, plot_curves
from espnet_bestow.evaluate.curve_tables import curves_markdown, overview
from espnet_bestow.evaluate.curves import CurvePoint, add_points, by_task, compare, lines, read_points, write_points

POINT = CurvePoint(
    "S-bidi", "asr_en", "test", "wait_k", {"k": 8, "step": 2}, "k", "wer", 5.3, {"laal": 1100.0}, 400, "c"
)
OFFLINE = replace(POINT, policy="offline", options={}, swept="", value=3.5, latency={})


def wait_k(k, laal, wer, **changes):
    return replace(POINT, options={"k": k, "step": 2}, latency={"laal": laal}, value=wer, **changes)


def align_att(threshold, laal, wer):
    return replace(
        POINT,
        policy="align_att",
        options={"threshold": threshold},
        swept="threshold",
        latency={"laal": laal},
        value=wer,
    )


CURVE = [wait_k(8, 1100.0, 5.0), wait_k(2, 200.0, 40.0), wait_k(12, 1700.0, 4.0), wait_k(4, 500.0, 20.0)]


def ink(path):
    """Share of pixels that are not white."""
    return float((imread(path)[..., :3].min(axis=-1) < 0.9).mean())


def test_points_come_back_and_replace_their_likes(tmp_path):
    path = tmp_path / "curves.json"
    assert read_points(path) == []
    add_points(path, CURVE)
    again = wait_k(2, 210.0, 39.0, low=35.0, high=44.0, empty=3)
    assert add_points(path, [again, OFFLINE]) == [CURVE[0], again, CURVE[2], CURVE[3], OFFLINE]
    assert read_points(path) == [CURVE[0], again, CURVE[2], CURVE[3], OFFLINE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "5"}, "entry 0: value must be a number, got '5'"),
        ({"latency": {"laal": None}}, "latency laal must be a number, got None"),
        ({"options": []}, r"options must be an object, got \[\]"),
        ({"swept": "threshold"}, r"swept option 'threshold' is not among \['k', 'step'\]"),
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
    ],
)
def test_broken_points_are_errors(tmp_path, change, message):
    path = tmp_path / "curves.json"
    write_points(path, [POINT])
    path.write_text(json.dumps([json.loads(path.read_text())[0] | change]))
    with pytest.raises(ValueError, match=message):
        read_points(path)


def test_broken_files_are_errors(tmp_path):
    path = tmp_path / "curves.json"
    for text, message in (
        ("{", "not a JSON file"),
        ("{}", "a list of points, got dict"),
        ("[1]", "expected an object"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_points(path)
    path.write_text('[{"system": "x"}]')
    with pytest.raises(ValueError, match=r"missing \['task', 'test_set'"):
        read_points(path)


def test_lines_hold_one_sweep_each_in_its_order():
    other_step = wait_k(8, 2000.0, 4.5)
    other_step = replace(other_step, options={"k": 8, "step": 4})
    found = lines([*CURVE, other_step, OFFLINE])
    assert [[p.position for p in line.points] for line in found] == [[2, 4, 8, 12], [8], [None]]
    assert [line.label for line in found] == [
        *("S-bidi wait_k by k (step 2)", "S-bidi wait_k by k (step 4)", "S-bidi offline")
    ]


def test_a_point_without_the_swept_option_is_a_line_of_its_own():
    alone = replace(POINT, options={"step": 2}, swept="")
    found = lines([alone, *CURVE])
    assert [[p.position for p in line.points] for line in found] == [[None], [2, 4, 8, 12]]
    assert [line.label for line in found] == ["S-bidi wait_k (step 2)", "S-bidi wait_k by k (step 2)"]


def test_panels_hold_one_task_metric_and_test_set():
    groups = by_task([POINT, replace(POINT, test_set="dev"), replace(POINT, metric="cer"), OFFLINE])
    assert [len(members) for members in groups.values()] == [2, 1, 1]


def test_policies_are_compared_at_equal_latency():
    (slow,) = lines(CURVE)
    (fast,) = lines([align_att(2, 350.0, 25.0), align_att(4, 800.0, 13.0), align_att(9, 1900.0, 3.0)])
    found = compare(fast, slow)
    assert [c.lag for c in found] == [350.0, 800.0]  # 1900 ms lies beyond the other line
    assert [c.other for c in found] == pytest.approx([30.0, 12.5])
    assert [c.difference for c in found] == pytest.approx([-5.0, 0.5])
    assert compare(fast, slow, "yaal") == []


def test_a_line_that_runs_back_is_read_by_latency():
    (line,) = lines([wait_k(1, 300.0, 30.0), wait_k(2, 100.0, 50.0), wait_k(3, 200.0, 44.0)])
    assert line.value_at("laal", 250.0) == pytest.approx(37.0)
    assert line.value_at("laal", 301.0) is None


def test_plots_are_drawn_and_reproducible(tmp_path):
    points = [*CURVE, OFFLINE, align_att(2, 350.0, 25.0), replace(POINT, task="ast_en-de", metric="bleu", value=50.0)]
    first = plot_curves(points, tmp_path / "a.png")
    assert first == tmp_path / "a.png"
    assert plot_curves(points, tmp_path / "b.png").read_bytes() == first.read_bytes()
    assert 0.01 < ink(first) < 0.5
    moved = [replace(points[0], value=6.0), *points[1:]]
    assert plot_curves(moved, tmp_path / "c.png").read_bytes() != first.read_bytes()


def test_a_file_per_metric_and_clock_that_was_measured(tmp_path):
    bleu = replace(POINT, task="ast_en-de", metric="bleu", latency={"laal": 900.0, "laal_ca": 950.0})
    silent = replace(POINT, metric="cer", latency={})
    written = plot_all_curves([*CURVE, OFFLINE, bleu, silent], tmp_path)
    assert [path.name for path in written] == ["wer_laal.png", "bleu_laal.png", "bleu_laal_ca.png"]
    assert plot_curves([OFFLINE], tmp_path / "x.png") is None


def test_a_perfect_point_can_be_drawn(tmp_path):
    """An error rate of zero has no logarithm."""
    assert plot_curves([*CURVE, wait_k(20, 2500.0, 0.0)], tmp_path / "a.png")


def test_tables_show_every_point_and_its_command():
    table = curves_markdown([*CURVE, replace(OFFLINE, empty=2, command="python -m x")])
    assert "| S-bidi | wait_k | k 4, step 2 | 20.00 | 500 | - | - | 0 of 400 |" in table
    assert "| S-bidi | offline | - | 3.50 | - | - | - | 2 of 400 |" in table
    assert "### asr_en, test" in table
    assert "* `c`\n* `python -m x`" in table
    assert "At equal LAAL" not in table
    tasks = curves_markdown([*CURVE, replace(OFFLINE, task="asr_de")])
    assert tasks.count("### ") == 2 and tasks.count("* `c`") == 1 and tasks.endswith("\n\nMade by:\n\n* `c`\n")
    assert "| 20.00 [17.50, 23.00] | 500 |" in curves_markdown([wait_k(4, 500.0, 20.0, low=17.5, high=23.0)])


def test_the_overview_has_tasks_side_by_side():
    bleu = replace(
        wait_k(4, 700.0, 60.0, low=57.0, high=64.0),
        task="ast_en-de",
        metric="bleu",
        latency={"laal": 700.0, "laal_ca": 732.0},
    )
    lines = overview([*CURVE, OFFLINE, bleu]).split("\n")
    assert lines[0].split("  ")[0] == "system" and "asr_en WER % ↓  LAAL s  + computing  ast_en-de BLEU ↑" in lines[0]
    assert [line.split() for line in lines[2:]] == [
        ["S-bidi", "wait_k:k=2,step=2", "40.00", "0.20", "-", "-", "-", "-"],
        ["S-bidi", "wait_k:k=4,step=2", "20.00", "0.50", "-", "60.00", "±3.50", "0.70", "0.73"],
        ["S-bidi", "wait_k:k=8,step=2", "5.00", "1.10", "-", "-", "-", "-"],
        ["S-bidi", "wait_k:k=12,step=2", "4.00", "1.70", "-", "-", "-", "-"],
        ["S-bidi", "offline", "3.50", "-", "-", "-", "-", "-"],
    ]
    elsewhere = overview([*CURVE, replace(POINT, test_set="noisy")]).split("\n")[0]
    assert "asr_en, test: WER % ↓" in elsewhere and "asr_en, noisy: WER % ↓" in elsewhere


def test_tables_read_other_policies_at_equal_latency():
    table = curves_markdown([*CURVE, OFFLINE, align_att(2, 350.0, 25.0), align_att(4, 800.0, 13.0)])
    against = "S-bidi wait_k by k (step 2)"
    assert f"| S-bidi align_att by threshold: 2 | {against} | 350 | 25.00 | 30.00 | -5.00 | yes |" in table
    assert f"| S-bidi align_att by threshold: 4 | {against} | 800 | 13.00 | 12.50 | +0.50 | no |" in table
    bleu = [replace(p, metric="bleu") for p in (*CURVE, align_att(2, 350.0, 25.0))]
    assert "| 350 | 25.00 | 30.00 | -5.00 | no |" in curves_markdown(bleu)
    other = replace(align_att(2, 350.0, 25.0), system="another")
    assert "At equal LAAL" not in curves_markdown([*CURVE, other])
