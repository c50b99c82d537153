"""Latency-quality points as tables: all of them, policies at equal latency, and a short one for the end of a recipe."""

from collections.abc import Sequence

from espnet_bestow.evaluate.curves import OFFLINE, CurvePoint, by_task, compare, lines
from espnet_bestow.evaluate.tables import aligned, metric_face, plus_minus, unique, with_interval

LATENCY_TITLES = {
    "laal": "LAAL",
    "laal_ca": "LAAL, computation-aware",
    "laal_elapsed": "LAAL of SimulEval's elapsed",
    "laal_paper": "LAAL as the paper counts it",
    "yaal": "YAAL",
    "yaal_ca": "YAAL, computation-aware",
    "al": "AL",
    "dal": "DAL",
    "long_yaal": "LongYAAL",
    "long_yaal_ca": "LongYAAL, computation-aware",
}
BASE = "wait_k"  # what other policies are compared with


def _policy(point: CurvePoint) -> str:
    """As one writes it on a command line. This room stands alone and cannot ask simul/policy_spec.py."""
    options = ",".join(f"{name}={value}" for name, value in point.options.items())
    return f"{point.policy}:{options}" if options else point.policy


def overview(points: Sequence[CurvePoint]) -> str:
    """Policies down, tasks and test sets across, aligned for a terminal.

    Quality ± half the width of its 95 % interval, and LAAL in seconds, with computing where it was measured.
    """
    shown = [name for name in ("laal", "laal_ca") if any(point.lag(name) is not None for point in points)]
    heads = {"laal": "LAAL s", "laal_ca": "+ computing"}
    header = ["system", "policy"]
    rows: dict[tuple[str, str], list[str]] = {
        (point.system, _policy(point)): [] for line in lines(points) for point in line.points
    }
    several = len({point.test_set for point in points}) > 1
    for (task, test_set, metric), members in by_task(points).items():
        where = f"{task}, {test_set}:" if several else task
        header += [f"{where} {metric_face(metric).heading}", *(heads[name] for name in shown)]
        found = {(point.system, _policy(point)): point for point in members}
        for key, cells in rows.items():
            point = found.get(key)
            lags = [None if point is None else point.lag(name) for name in shown]
            cells.append("-" if point is None else plus_minus(point))
            cells += ["-" if lag is None else f"{lag / 1000:.2f}" for lag in lags]
    return aligned([header, *([*key, *cells] for key, cells in rows.items())])


def _against_base(points: Sequence[CurvePoint], latency: str) -> list[str]:
    """Rows of a table: points of other policies beside wait-k of the same system at the same latency."""
    found = lines(points)
    rows = []
    for base in (line for line in found if line.policy == BASE):
        for line in (line for line in found if line.policy not in (BASE, OFFLINE) and line.system == base.system):
            lower = metric_face(points[0].metric).lower_is_better
            for c in compare(line, base, latency):
                better = c.difference < 0 if lower else c.difference > 0
                at = f"{line.label}: {c.point.position}" if c.point.swept else line.label
                cells = [at, base.label, f"{c.lag:.0f}", f"{c.point.value:.2f}", f"{c.other:.2f}"]
                rows.append(f"| {' | '.join([*cells, f'{c.difference:+.2f}', 'yes' if better else 'no'])} |")
    return rows


def curves_markdown(points: Sequence[CurvePoint], latencies: Sequence[str] = ("laal", "laal_ca", "yaal")) -> str:
    """A table per task: every point with its options, quality [95 % interval] and latencies, and the commands below.

    Where wait-k and other policies of one system were measured, a second table reads them at equal latency (the first
    of `latencies`).
    """
    text = []
    for (task, test_set, metric), members in by_task(points).items():
        head = ["system", "policy", "options", metric_face(metric).heading]
        head += [f"{LATENCY_TITLES.get(name, name)} ms" for name in latencies]
        text += [f"### {task}, {test_set}", "", f"| {' | '.join([*head, 'empty'])} |"]
        text += [f"| --- | --- | --- |{' ---: |' * (len(latencies) + 2)}"]
        for point in (p for line in lines(members) for p in line.points):
            options = ", ".join(f"{name} {value}" for name, value in point.options.items()) or "-"
            lags = [f"{lag:.0f}" if (lag := point.lag(name)) is not None else "-" for name in latencies]
            cells = [point.system, point.policy, options, with_interval(point), *lags, f"{point.empty} of {point.n}"]
            text.append(f"| {' | '.join(cells)} |")
        if rows := _against_base(members, latencies[0]):
            title = LATENCY_TITLES.get(latencies[0], latencies[0])
            text += ["", f"At equal {title}, {BASE} read on the straight way between its points:", ""]
            text += [f"| point | against | {title} ms | value | {BASE} | difference | better |"]
            text += ["| --- | --- | ---: | ---: | ---: | ---: | --- |", *rows]
        text.append("")
    if commands := unique(point.command for point in points if point.command):
        text += ["Made by:", "", *(f"* `{command}`" for command in commands), ""]
    return "\n".join(text)
