"""What our plots have in common: colours, panels, files.

Figures are built without pyplot: no global state, no display, no backend to choose.
"""

from math import ceil
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's palette: told apart by colour-blind readers and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#666666"


def style(axes: Axes) -> None:
    """What all our plots look like."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, labelsize=9)


def panels(count: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels of `size` inches each, at most `columns` in a row."""
    columns = min(columns, count)
    rows = ceil(count / columns)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)  # inches around each panel
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout=layout)
    FigureCanvasAgg(figure)
    drawn = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in drawn[count:]:
        spare.remove()
    for axes in drawn[:count]:
        style(axes)
    return figure, drawn[:count]


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without matplotlib's version and date in the file, equal data gives equal bytes.
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
