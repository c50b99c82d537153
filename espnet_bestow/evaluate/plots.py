"""PNG plots of training curves and scores."""

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from espnet_bestow.evaluate.figures import COLOURS, GREY, MARKERS, panels, save
from espnet_bestow.evaluate.history import SIDES, History
from espnet_bestow.evaluate.results import ResultRow
from espnet_bestow.evaluate.tables import main_rows, metric_face, row_order, unique

_MARKERS_UP_TO = 20  # epochs; beyond, markers merge into a thick line


def _draw_curve(axes: Axes, history: History, side: str, key: str, colour: str, label: str) -> None:
    """A statistic over epochs: solid for valid, dashed for train."""
    numbers, values = history.curve(side, key)
    if not numbers:
        return
    marker = "o" if len(numbers) <= _MARKERS_UP_TO else None
    style = "-" if side == "valid" else "--"
    axes.plot(numbers, values, style, color=colour, marker=marker, markersize=3.5, label=label)


def _epoch_axis(axes: Axes, history: History, ylabel: str) -> None:
    axes.set_title(history.stage, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("epoch", fontsize=9, color=GREY)
    axes.set_ylabel(ylabel, fontsize=9, color=GREY)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(fontsize=8, frameon=False)


def _plot_stages(histories: Sequence[History], path: Path, draw: Callable[[Axes, History], str]) -> Path:
    """One panel per stage; `draw` fills it and returns the label of its y axis."""
    figure, drawn = panels(len(histories), 3, (4.6, 3.4))
    for axes, history in zip(drawn, histories, strict=True):
        _epoch_axis(axes, history, draw(axes, history))
    return save(figure, path)


def plot_loss(histories: Sequence[History], path: Path) -> Path | None:
    """Training and validation loss of each stage."""

    def draw(axes: Axes, history: History) -> str:
        for side, colour in zip(SIDES, COLOURS, strict=False):
            _draw_curve(axes, history, side, "loss", colour, side)
        return "loss"

    logged = [h for h in histories if "loss" in h.statistics()]
    return _plot_stages(logged, path, draw) if logged else None


def plot_token_accuracy(histories: Sequence[History], path: Path) -> Path | None:
    """Token accuracy of each stage that logs it."""

    def draw(axes: Axes, history: History) -> str:
        for side, colour in zip(SIDES, COLOURS, strict=False):
            _draw_curve(axes, history, side, "acc", colour, side)
        axes.set_ylim(top=1.0)
        return "token accuracy"

    logged = [h for h in histories if "acc" in h.statistics()]
    return _plot_stages(logged, path, draw) if logged else None


def _part_keys(history: History) -> list[str]:
    # ESPnet's loss_scale is that of mixed precision, not a loss.
    return [key for key in history.statistics() if key.startswith("loss_") and key != "loss_scale"]


def plot_loss_parts(histories: Sequence[History], path: Path) -> Path | None:
    """Validation loss per task and per part (`loss_<name>`), dashed for training."""

    def draw(axes: Axes, history: History) -> str:
        for i, key in enumerate(_part_keys(history)):
            colour, name = COLOURS[i % len(COLOURS)], key.removeprefix("loss_")
            _draw_curve(axes, history, "train", key, colour, "_train")
            _draw_curve(axes, history, "valid", key, colour, name)
        return "loss (solid: valid, dashed: train)"

    logged = [h for h in histories if _part_keys(h)]
    return _plot_stages(logged, path, draw) if logged else None


def _draw_scores(axes: Axes, rows: Sequence[ResultRow], systems: Sequence[str]) -> None:
    """Points with intervals: test sets along x, systems side by side."""
    test_sets = sorted({row.test_set for row in rows})
    step = 0.6 / max(len(systems), 1)
    for i, system in enumerate(systems):
        members = [row for row in rows if row.system == system]
        xs = [test_sets.index(r.test_set) + (i - (len(systems) - 1) / 2) * step for r in members]
        errors = [[r.value - r.low for r in members], [r.high - r.value for r in members]]
        clipped = [[max(0.0, e) for e in side] for side in errors]
        axes.errorbar(
            xs, [r.value for r in members], yerr=clipped, fmt=MARKERS[i % len(MARKERS)],
            color=COLOURS[i % len(COLOURS)], capsize=3, markersize=6, label=system,
        )  # fmt: skip
        for x, row in zip(xs, members, strict=True):
            axes.annotate(
                f"{row.value:.1f}", (x, row.value), xytext=(7, 0), textcoords="offset points",
                fontsize=8, va="center", color=COLOURS[i % len(COLOURS)],
            )  # fmt: skip
    axes.set_xticks(range(len(test_sets)), test_sets)
    axes.set_xlim(-0.6, len(test_sets) - 0.4)


def plot_scores(rows: Sequence[ResultRow], path: Path) -> Path | None:
    """Main metric of each task on each test set, with 95 % intervals."""
    by_task = main_rows(rows)
    if not by_task:
        return None
    systems = unique(row.system for row in sorted(rows, key=row_order))
    widest = max(len({row.test_set for row in members}) for members in by_task.values())
    width = max(3.6, 1.15 * widest + 0.5 * len(systems))
    figure, drawn = panels(len(by_task), 3, (width, 3.0))
    for axes, (task, members) in zip(drawn, by_task.items(), strict=True):
        _draw_scores(axes, members, systems)
        face = metric_face(members[0].metric)
        direction = "lower is better" if face.lower_is_better else "higher is better"
        axes.set_title(task, fontsize=11, loc="left", fontweight="bold")
        axes.set_ylabel(f"{face.title} ({direction})", fontsize=9, color=GREY)
    handles, labels = drawn[0].get_legend_handles_labels()
    if len(systems) > 1:
        figure.legend(handles, labels, loc="outside upper right", ncols=4, frameon=False)
    return save(figure, path)
