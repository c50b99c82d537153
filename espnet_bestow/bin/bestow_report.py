"""Tables and plots of an experiment directory: `python -m espnet_bestow.bin.bestow_report`."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_bestow.evaluate.curve_tables import curves_markdown, overview
from espnet_bestow.evaluate.curves import CurvePoint, read_points
from espnet_bestow.evaluate.history import read_histories
from espnet_bestow.evaluate.plots import (
    plot_loss,
    plot_loss_parts,
    plot_scores,
    plot_token_accuracy,
)
from espnet_bestow.evaluate.results import read_results, write_text_atomically
from espnet_bestow.evaluate.tables import results_markdown, terminal_tables


def get_parser() -> argparse.ArgumentParser:
    """Command line options."""
    parser = argparse.ArgumentParser(
        description="Write RESULTS.md and plots from results.json and every */history.json",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--exp", type=Path, required=True, help="Experiment directory")
    parser.add_argument("--title", default="Results", help="Heading of RESULTS.md")
    return parser


def report(exp: Path, title: str) -> str:
    """Writes the files and returns what to print."""
    rows, histories = read_results(exp / "results.json"), read_histories(exp)
    if not rows and not histories:
        raise ValueError(f"{exp}: neither results.json nor */history.json holds anything to show")
    images = exp / "images"
    plots = [
        ("Scores", plot_scores(rows, images / "scores.png")),
        ("Loss", plot_loss(histories, images / "loss.png")),
        ("Token accuracy", plot_token_accuracy(histories, images / "token_accuracy.png")),
        ("Loss by task and part", plot_loss_parts(histories, images / "loss_parts.png")),
    ]
    drawn = [(caption, path) for caption, path in plots if path]
    linked = [(caption, path.relative_to(exp)) for caption, path in drawn]
    markdown = exp / "RESULTS.md"
    # What bestow_curve left in exp/<kind>/<test set>.
    streamed = {file.parent.relative_to(exp): read_points(file) for file in sorted(exp.glob("*/*/curves.json"))}
    write_text_atomically(markdown, results_markdown(title, rows, linked) + streaming_markdown(exp, streamed))
    tables = [terminal_tables(rows)] if rows else []
    tables += [f"streaming: {place.parent}, {place.name}\n{overview(points)}" for place, points in streamed.items()]
    written = [f"wrote {path}" for path in (markdown, *(path for _, path in drawn))]
    return "\n\n".join([*tables, "\n".join(written)])


def streaming_markdown(exp: Path, streamed: Mapping[Path, Sequence[CurvePoint]]) -> str:
    """Plots and tables of points by their place in ``exp``; empty where there are none."""
    parts = []
    for place, points in streamed.items():
        images = "".join(f"![{image.stem}]({place / image.name})\n" for image in sorted((exp / place).glob("*.png")))
        parts.append(f"\n## Streaming: {place.parent}, {place.name}\n\n{images}\n{curves_markdown(points)}\n")
    return "".join(parts)


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends in one line."""
    args = get_parser().parse_args(cmd)
    try:
        print(report(args.exp, args.title))
    except (ValueError, OSError) as error:
        sys.exit(f"bestow_report: {error}")


if __name__ == "__main__":
    main()
