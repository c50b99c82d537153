"""Latency-quality plots (Fig. 3 and 4 of the paper)."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from espnet_bestow.evaluate.curve_tables import LATENCY_TITLES
from espnet_bestow.evaluate.curves import OFFLINE, CurvePoint, Line, by_task, lines
from espnet_bestow.evaluate.figures import COLOURS, GREY, MARKERS, panels, save
from espnet_bestow.evaluate.tables import metric_face, unique

_WIDE = 6  # largest over smallest error rate of a panel, from which on the axis is logarithmic
_DASHES = ((0, (5, 3)), (0, (1, 2)), (0, (6, 2, 1, 2)))


def _draw_line(axes: Axes, line: Line, latency: str, look: int) -> None:
    """Points with their intervals and the swept option beside them."""
    colour, marker = COLOURS[look % len(COLOURS)], MARKERS[look % len(MARKERS)]
    points = [p for p in line.points if p.lag(latency) is not None]
    lags = [(p.lag(latency) or 0.0) / 1000 for p in points]
    values = [p.value for p in points]
    errors = [
        [max(0.0, p.value - p.low) if p.low is not None else 0.0 for p in points],
        [max(0.0, p.high - p.value) if p.high is not None else 0.0 for p in points],
    ]
    bars = axes.errorbar(
        lags, values, yerr=errors, fmt=marker, linestyle="-", color=colour, markersize=5.5, linewidth=1.6,
        elinewidth=1.0, label=line.label,
    )  # fmt: skip
    for bar in bars[2]:
        bar.set_alpha(0.35)
    for lag, point in zip(lags, points, strict=True):
        if point.swept:
            axes.annotate(
                f"{point.position}", (lag, point.value), xytext=(0, -12 if look % 2 else 6),
                textcoords="offset points", ha="center", fontsize=7, color=colour,
            )  # fmt: skip


def _draw_panel(axes: Axes, points: Sequence[CurvePoint], latency: str, looks: Sequence[str]) -> None:
    offline = 0
    for line in lines(points):
        if line.policy == OFFLINE:
            label = f"{line.system} {OFFLINE}"
            axes.axhline(
                line.points[-1].value, color=GREY, linewidth=1.2, linestyle=_DASHES[offline % len(_DASHES)], label=label
            )
            offline += 1
        elif line.measured(latency)[0]:
            _draw_line(axes, line, latency, looks.index(line.label))
    metric = metric_face(points[0].metric)
    direction = "lower is better" if metric.lower_is_better else "higher is better"
    axes.set_title(points[0].task, fontsize=11, loc="left", fontweight="bold")
    axes.set_title(f"{points[0].test_set}, n = {max(p.n for p in points)}", fontsize=8, loc="right", color=GREY)
    axes.set_xlabel(f"{LATENCY_TITLES.get(latency, latency)} (s)", fontsize=9, color=GREY)
    axes.set_ylabel(f"{metric.title} ({direction})", fontsize=9, color=GREY)
    axes.margins(x=0.07, y=0.12)
    if metric.lower_is_better:
        _error_scale(axes, [p.value for p in points])


_CHARACTER, _HANDLE, _LEGEND_ROW = 0.065, 0.65, 0.2  # inches in a legend of size 8


def _error_scale(axes: Axes, values: Sequence[float]) -> None:
    """From 0, or in ratios where the first points would squash the rest against the axis."""
    if min(values) <= 0 or max(values) < _WIDE * min(values):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def plot_curves(points: Sequence[CurvePoint], path: Path, latency: str = "laal") -> Path | None:
    """One panel per task and test set: quality over latency, a line per sweep, offline as a dashed level.

    Args:
        points: of one metric of quality, or of several (panels are apart anyway).
        path: PNG to write.
        latency: what stands on the x axis, a key of `CurvePoint.latency`.

    Returns:
        The path; None where no point has that latency.
    """
    if not any(p.lag(latency) is not None for p in points if p.policy != OFFLINE):
        return None
    groups = by_task(points)
    looks = unique(line.label for line in lines(points) if line.policy != OFFLINE)
    figure, drawn = panels(len(groups), 3, (4.8, 3.8))
    for axes, members in zip(drawn, groups.values(), strict=True):
        _draw_panel(axes, members, latency, looks)
    named: dict[str, Artist] = {}
    for axes in drawn:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    order = sorted(named, key=lambda label: label.endswith(OFFLINE))
    # All columns of a legend are as wide as its longest label; panels shrink to make room for its rows.
    width, height = figure.get_size_inches()
    columns = max(1, int(width / (_CHARACTER * max(map(len, order)) + _HANDLE)))
    figure.set_size_inches(width, height + _LEGEND_ROW * -(-len(order) // columns))
    figure.legend(
        [named[label] for label in order], order, loc="outside upper center", ncols=columns, frameon=False, fontsize=8
    )
    return save(figure, path)


def plot_all_curves(points: Sequence[CurvePoint], folder: Path) -> list[Path]:
    """A file per metric of quality, and one more for its computation-aware latency where that was measured."""
    written = []
    for metric in unique(point.metric for point in points):
        members = [point for point in points if point.metric == metric]
        for latency in ("laal", "laal_ca"):
            path = plot_curves(members, folder / f"{metric}_{latency}.png", latency)
            written += [path] if path else []
    return written
