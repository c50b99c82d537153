"""Scores as tables in a terminal and in RESULTS.md: system by system, then side by side."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from espnet_bestow.evaluate.results import ResultRow


@dataclass(frozen=True)
class MetricFace:
    """How a metric is shown."""

    title: str
    lower_is_better: bool = False

    @property
    def heading(self) -> str:
        """Title, unit and direction."""
        return f"{self.title} {'↓' if self.lower_is_better else '↑'}"


# In the order of tables; a task's first metric here is the one that is plotted.
METRIC_FACES = {
    "wer": MetricFace("WER %", lower_is_better=True),
    "cer": MetricFace("CER %", lower_is_better=True),
    "bleu": MetricFace("BLEU"),
    "chrf": MetricFace("chrF"),
    "exact_match": MetricFace("exact match %"),
    "rouge_l": MetricFace("ROUGE-L"),
    "rouge_l_stem": MetricFace("ROUGE-L stemmed"),
    "accuracy": MetricFace("accuracy %"),
}
_FAMILY_ORDER = ("asr", "ast", "sqa", "command")


class Measured(Protocol):
    """A value with its 95 % interval, where that is known."""

    @property
    def value(self) -> float:
        """The value."""

    @property
    def low(self) -> float | None:
        """Lower end of the interval."""

    @property
    def high(self) -> float | None:
        """Upper end of the interval."""


def plus_minus(measured: Measured) -> str:
    """For a terminal: value ± half the width of its interval."""
    if measured.low is None or measured.high is None:
        return f"{measured.value:.2f}"
    return f"{measured.value:.2f} ±{(measured.high - measured.low) / 2:.2f}"


def with_interval(measured: Measured) -> str:
    """For a page: value [low, high]."""
    if measured.low is None or measured.high is None:
        return f"{measured.value:.2f}"
    return f"{measured.value:.2f} [{measured.low:.2f}, {measured.high:.2f}]"


def metric_face(metric: str) -> MetricFace:
    """Face of a metric; one that is not ours shows its own name."""
    return METRIC_FACES.get(metric, MetricFace(metric))


def row_order(row: ResultRow) -> tuple[str, int, str, int, str, str]:
    """Sorting key that does not depend on the order of scoring runs."""
    family = row.task.partition("_")[0]
    family_rank = _FAMILY_ORDER.index(family) if family in _FAMILY_ORDER else len(_FAMILY_ORDER)
    metrics = list(METRIC_FACES)
    metric_rank = metrics.index(row.metric) if row.metric in metrics else len(metrics)
    return row.system, family_rank, row.task, metric_rank, row.metric, row.test_set


def main_rows(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    """Task -> its rows of the main metric only, in table order."""
    by_task: dict[str, list[ResultRow]] = {}
    ordered = sorted(rows, key=lambda row: row_order(row)[1:])
    for row in ordered:
        members = by_task.setdefault(row.task, [])
        if not members or members[0].metric == row.metric:
            members.append(row)
    return by_task


def unique(items: Iterable[str]) -> list[str]:
    """Items without repeats, first come first."""
    return list(dict.fromkeys(items))


def aligned(cells: Sequence[Sequence[str]], left: int = 2) -> str:
    """Aligned text columns: the first ``left`` to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _cells(rows: Sequence[ResultRow], show: Callable[[ResultRow], str]) -> list[list[str]]:
    """Header and body of one system's table; `show` renders a row's value."""
    test_sets = sorted({row.test_set for row in rows})
    grid: dict[tuple[str, str], dict[str, ResultRow]] = {}
    for row in rows:
        grid.setdefault((row.task, row.metric), {})[row.test_set] = row
    cells = [["task", "metric", *test_sets]]
    for (task, metric), by_set in grid.items():
        shown = [show(by_set[name]) if name in by_set else "-" for name in test_sets]
        cells.append([task, metric_face(metric).heading, *shown])
    return cells


def _by_system(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    systems: dict[str, list[ResultRow]] = {}
    for row in sorted(rows, key=row_order):
        systems.setdefault(row.system, []).append(row)
    return systems


def _side_by_side(rows: Sequence[ResultRow], best: Callable[[str], str]) -> dict[str, list[list[str]]]:
    """Test set that several systems have answered -> header, and a line for each with the main metric of every task.

    The best value of a column is shown as ``best`` says.
    """
    tables = {}
    for test_set in sorted({row.test_set for row in rows}):
        columns = main_rows([row for row in rows if row.test_set == test_set])
        systems = sorted({row.system for members in columns.values() for row in members})
        if len(systems) < 2:
            continue
        lines = {system: [system] for system in systems}
        for members in columns.values():
            values = {row.system: row.value for row in members}
            winner = (min if metric_face(members[0].metric).lower_is_better else max)(values.values())
            for system, line in lines.items():
                shown = f"{values[system]:.2f}" if system in values else "-"
                line.append(best(shown) if values.get(system) == winner else shown)
        header = [f"{task} {metric_face(members[0].metric).heading}" for task, members in columns.items()]
        tables[test_set] = [["system", *header], *lines.values()]
    return tables


def terminal_tables(rows: Sequence[ResultRow]) -> str:
    """A compact table per system: value ± half the width of its 95 % interval; several systems also side by side."""
    tables = [f"{system}\n{aligned(_cells(members, plus_minus))}" for system, members in _by_system(rows).items()]
    compared = _side_by_side(rows, lambda value: f"*{value}")
    tables += [
        f"side by side on {test_set}, * the best\n{aligned(cells, left=1)}" for test_set, cells in compared.items()
    ]
    return "\n\n".join(tables)


def _markdown_table(cells: Sequence[Sequence[str]], left: int = 2) -> list[str]:
    """The first ``left`` columns to the left, numbers to the right."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    rule = ["---"] * left + ["---:"] * (len(cells[0]) - left)
    return [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]


def _with_interval_and_count(row: ResultRow) -> str:
    return f"{with_interval(row)} (n = {row.n})"


def _command_list(rows: Sequence[ResultRow]) -> list[str]:
    lines = []
    for command in unique(row.command for row in rows):
        scored = unique(row.test_set for row in rows if row.command == command)
        lines.append(f"* {', '.join(scored)}: `{command}`" if command else f"* {', '.join(scored)}")
    return lines


def _signature_list(rows: Sequence[ResultRow]) -> list[str]:
    pairs: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.signature:
            pairs.setdefault((metric_face(row.metric).title, row.signature), []).append(row.task)
    return [f"* {title} ({', '.join(unique(tasks))}): `{signature}`" for (title, signature), tasks in pairs.items()]


def results_markdown(title: str, rows: Sequence[ResultRow], images: Sequence[tuple[str, Path]]) -> str:
    """RESULTS.md: no dates and no clock times, so equal scores give an equal file.

    Args:
        title: First heading.
        rows: Scores in any order.
        images: (caption, path relative to the file) of plots.
    """
    lines = [f"# {title}", ""]
    if rows:
        lines += ["Value [95 % bootstrap interval over utterances] (n = utterances scored).", ""]
    for system, members in _by_system(rows).items():
        lines += [f"## {system}", "", *_markdown_table(_cells(members, _with_interval_and_count)), ""]
        lines += ["Made by:", "", *_command_list(members), ""]
        if signatures := _signature_list(members):
            lines += ["Metric settings:", "", *signatures, ""]
    if compared := _side_by_side(rows, lambda value: f"**{value}**"):
        lines += ["## Side by side", "", "Main metric of each task; the best in bold. Intervals are above.", ""]
        for test_set, cells in compared.items():
            lines += [f"### {test_set}", "", *_markdown_table(cells, left=1), ""]
    if images:
        lines += ["## Plots", ""]
        for caption, path in images:
            lines += [f"![{caption}]({path.as_posix()})", ""]
    return "\n".join(lines)
