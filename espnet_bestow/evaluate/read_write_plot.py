"""One utterance as it was read and written: what each token saw, looked at, and when it was written."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray

from espnet_bestow.evaluate.emission import SpokenWord
from espnet_bestow.evaluate.figures import COLOURS, GREY, panels, save

_BLUES = LinearSegmentedColormap.from_list("attention", ["#ffffff", COLOURS[0]])
_HEIGHT = 0.24  # inches of a token
_LONGEST = 12.0  # inches


@dataclass(frozen=True)
class ReadWriteTrace:
    """What happened in one utterance; U tokens, F frames.

    Attributes:
        tokens: (U,) what was written, end token included if wanted.
        visible: (U,) frames that each token was allowed to see.
        frames: F, encoder frames of the whole utterance.
        attention: (U, F) weights, zero where nothing was seen; None where they were not kept.
        consumed: (U,) seconds of audio consumed when each token was written; with a look-ahead it is more than the
            visible frames last. NaN for a token without a time of its own; empty where it was not kept.
        emitted: (U,) seconds of a real clock at which each token was written; the same.
        spoken: words of the recording, to be written above.
        frame_seconds: length of a frame.
    """

    tokens: Sequence[str]
    visible: Sequence[int]
    frames: int
    attention: NDArray | None = None
    consumed: Sequence[float] = ()
    emitted: Sequence[float] = ()
    spoken: Sequence[SpokenWord] = ()
    frame_seconds: float = 0.08

    def __post_init__(self) -> None:
        """Refuses what cannot be drawn on one pair of axes."""
        count = len(self.tokens)
        if not count or self.frames < 1:
            raise ValueError(f"there is nothing to draw in {count} tokens and {self.frames} frames")
        if len(self.visible) != count:
            raise ValueError(f"{count} tokens but {len(self.visible)} visible counts")
        if beyond := [v for v in self.visible if not 0 <= v <= self.frames]:
            raise ValueError(f"visible must lie between 0 and {self.frames} frames, got {beyond[0]}")
        for name in ("consumed", "emitted"):
            if len(times := getattr(self, name)) not in (0, count):
                raise ValueError(f"{count} tokens but {len(times)} {name} times")
        if self.attention is not None and self.attention.shape != (count, self.frames):
            raise ValueError(f"attention must be ({count}, {self.frames}), got {self.attention.shape}")


def _draw_attention(axes: Axes, trace: ReadWriteTrace, end: float) -> None:
    """A row per token, shaded by its weights; each row by its own largest, so that broad rows are seen too."""
    if trace.attention is None:
        return
    peak = trace.attention.max(axis=1, keepdims=True)
    rows = len(trace.tokens)
    axes.imshow(
        trace.attention / np.where(peak > 0, peak, 1), aspect="auto", cmap=_BLUES, interpolation="nearest",
        extent=(0, end, rows - 0.5, -0.5), vmin=0, vmax=1,
    )  # fmt: skip


def _draw_staircase(axes: Axes, trace: ReadWriteTrace) -> None:
    """The edge of what may be seen: a read to the right, a write downwards; beyond it is grey."""
    edges = np.arange(len(trace.tokens) + 1) - 0.5
    seen = np.asarray(trace.visible) * trace.frame_seconds
    axes.stairs(seen, edges, orientation="horizontal", baseline=None, color="black", linewidth=1.4, label="visible")
    right = np.full(len(seen), trace.frames * trace.frame_seconds)
    axes.barh(
        np.arange(len(seen)), right - seen, left=seen, height=1.0, color="#e8e8e8", linewidth=0, zorder=0.5
    )  # fmt: skip


def _draw_marks(axes: Axes, trace: ReadWriteTrace) -> None:
    rows = range(len(trace.tokens))
    if len(trace.consumed):
        axes.plot(trace.consumed, rows, "o", color=COLOURS[1], markersize=4, label="audio consumed")
    if len(trace.emitted):
        axes.plot(trace.emitted, rows, "x", color=COLOURS[2], markersize=5, label="written (real clock)")


def _draw_words(axes: Axes, spoken: Sequence[SpokenWord]) -> None:
    """Spoken words above the axes, each from its onset."""
    for word in spoken:
        axes.axvline(word.onset / 1000, color="#bbbbbb", linewidth=0.6, zorder=0.8)
        axes.text(
            word.onset / 1000, 1.01, word.text, transform=axes.get_xaxis_transform(), rotation=50, fontsize=8,
            color=GREY, va="bottom", ha="left", parse_math=False,
        )  # fmt: skip


def plot_read_write(trace: ReadWriteTrace, path: Path, title: str = "") -> Path:
    """Tokens downwards, time to the right: attention, the staircase of `visible`, and when each token came out."""
    end = trace.frames * trace.frame_seconds
    last = float(np.nanmax([end, *trace.consumed, *trace.emitted]))
    size = (min(_LONGEST, 3.5 + 1.3 * last), 1.6 + _HEIGHT * len(trace.tokens))
    figure, (axes,) = panels(1, 1, size)
    _draw_attention(axes, trace, end)
    _draw_staircase(axes, trace)
    _draw_marks(axes, trace)
    _draw_words(axes, trace.spoken)
    axes.grid(False)
    axes.set_xlim(0, last * 1.02)
    axes.set_ylim(len(trace.tokens) - 0.5, -0.5)
    axes.set_yticks(range(len(trace.tokens)), list(trace.tokens), fontsize=8, parse_math=False)
    axes.set_xlabel("time (s)", fontsize=9, color=GREY)
    if title:
        figure.suptitle(title, fontsize=10, x=0.01, ha="left", fontweight="bold")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(figure, path)
