"""Latency-quality curves: ``bestow curve`` and ``python -m espnet_bestow.bin.bestow_curve``.

Scores what ``bestow_simulate`` wrote (or runs it first, with ``--model``), merges the points into ``curves.json`` and
draws them.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin import bestow_simulate
from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.evaluate.curve_plots import plot_all_curves
from espnet_bestow.evaluate.curve_tables import curves_markdown, overview
from espnet_bestow.evaluate.curves import CurvePoint, add_points
from espnet_bestow.evaluate.instances import LOG_NAME, Instance, Unit, read_instances
from espnet_bestow.evaluate.latency_scoring import score_latency
from espnet_bestow.evaluate.results import write_text_atomically
from espnet_bestow.evaluate.tasks import metrics_for
from espnet_bestow.simul.policy_spec import PolicySpec

MODULE = "espnet_bestow.bin.bestow_curve"


def get_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Command line options."""
    parser = argparse.ArgumentParser(
        prog,
        description="Score and draw latency-quality curves",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--logs", nargs="+", default=[], metavar="SYSTEM=DIR", help="Outputs of bestow_simulate")
    parser.add_argument("--test_set", default="test", help="Name of the data, in tables and plots")
    parser.add_argument("--output_dir", type=Path, required=True, help="Gets curves.json, CURVES.md and plots")
    parser.add_argument("--system", help="Name of --model in the results (None: its directory's)")
    parser.add_argument("--command_line", help="Command noted with the points (None: this very one)")
    group = parser.add_argument_group("Streaming", "With --model, that model is streamed first, as by bestow_simulate.")
    bestow_simulate.add_options(group, required=False)
    return parser


def spec_of(instance: Instance) -> PolicySpec:
    """The policy that a log line names."""
    try:
        return PolicySpec.parse(instance.extra["policy"])
    except KeyError:
        raise ValueError(f"instance {instance.index}: no policy in the log; only bestow_simulate writes it") from None


def swept_options(specs: Sequence[PolicySpec]) -> dict[str, str]:
    """For each policy the option that takes the most values; empty where none varies."""
    swept = {}
    for name in {spec.name for spec in specs}:
        values = {pair for spec in specs if spec.name == name for pair in spec.options}
        counts = Counter(option for option, _ in sorted(values, key=str))
        option, most = max(counts.items(), key=lambda item: item[1], default=("", 0))
        swept[name] = option if most > 1 else ""
    return swept


def points_of(system: str, folder: Path, test_set: str, unit: Unit, command: str) -> list[CurvePoint]:
    """One point per policy and task, with the main metric of the task, in ``folder/<policy>/<task>/instances.log``."""
    logs = {log: read_instances(log, unit) for log in sorted(folder.glob(f"*/*/{LOG_NAME}"))}
    if not logs:
        raise ValueError(f"{folder}: no <policy>/<task>/{LOG_NAME} in it")
    specs = {log: spec_of(instances[0]) for log, instances in logs.items()}
    swept = swept_options(list(specs.values()))
    points = []
    for log, instances in logs.items():
        spec, task = specs[log], log.parent.name
        report = score_latency(instances, unit)
        latency = {name: score.value for name, score in report.scores.items()}
        hyps, refs = [i.prediction for i in instances], [i.reference for i in instances]
        score = metrics_for(task)[0](hyps, refs).score()
        points.append(
            CurvePoint(
                system=system,
                task=task,
                test_set=test_set,
                policy=spec.name,
                options=dict(spec.options),
                swept=swept[spec.name] if swept[spec.name] in dict(spec.options) else "",
                metric=score.metric,
                value=score.value,
                latency=latency,
                n=score.n,
                command=command,
                low=score.low,
                high=score.high,
                empty=report.empty,
            )
        )
    return points


def stream_model(args: argparse.Namespace) -> tuple[str, Path]:
    """Streams ``--model``; its name and its logs."""
    if args.data_dir is None or not args.policies:
        raise ValueError(f"--model {args.model} needs --data_dir and --policies")
    path = Path(args.model)
    system = args.system or (path.parent.name if path.suffix == ".pth" else path.name.removesuffix(".zip"))
    folder = args.output_dir / "logs" / args.test_set / system
    bestow_simulate.run(args, folder)
    return system, folder


def _add(logs: dict[str, Path], system: str, folder: Path) -> None:
    if system in logs:
        raise ValueError(f"{logs[system]} and {folder} are both named {system!r}: say --logs <system>=<dir>")
    logs[system] = folder


def curve(args: argparse.Namespace, command: str) -> str:
    """Does the work and returns what to print."""
    logs: dict[str, Path] = {}
    for word in args.logs:
        system, equals, folder = word.partition("=")
        _add(logs, system if equals else Path(word).name, Path(folder if equals else word))
    if args.model is not None:
        _add(logs, *stream_model(args))
    if not logs:
        raise ValueError("there is nothing to draw: give --logs, or a --model")
    new = [p for system, folder in logs.items() for p in points_of(system, folder, args.test_set, args.unit, command)]
    points = add_points(args.output_dir / "curves.json", new)
    plots = plot_all_curves(points, args.output_dir)
    images = "".join(f"![{path.stem}]({path.name})\n" for path in plots)
    markdown = args.output_dir / "CURVES.md"
    write_text_atomically(markdown, f"# Latency and quality\n\n{images}\n{curves_markdown(points)}\n")
    lines = [f"{len(new)} points of {' '.join(logs)}: {args.output_dir / 'curves.json'}"]
    return "\n".join([*lines, overview(points), *(f"wrote {path}" for path in (markdown, *plots))])


def run(args: argparse.Namespace) -> int:
    """For ``bestow curve``; returns the exit status."""
    print(curve(args, args.command_line or shlex.join(sys.argv)))
    return 0


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point; bad input ends in one line."""
    cmd = sys.argv[1:] if cmd is None else cmd
    args = get_parser().parse_args(cmd)
    args.command_line = args.command_line or shlex.join(["python", "-m", MODULE, *cmd])
    with fail_with_one_line():
        run(args)


if __name__ == "__main__":
    main()
