"""What several jobs of ``simuleval`` wrote, as one log per task with our keys, and its scores beside ours."""

import argparse
from dataclasses import replace
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line
from espnet_bestow.evaluate.instances import LOG_NAME, UNITS, Instance, Unit, merge_instances, write_instances
from espnet_bestow.evaluate.latency_scoring import score_latency
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.simul.rescore import simuleval_latency

TOLERANCE = 5e-4  # three decimals


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=Path, nargs="+", required=True, help="--output of each job")
    parser.add_argument("--lists", type=Path, required=True, help="What simuleval_lists wrote")
    parser.add_argument("--policy", required=True, help="Policy of the jobs")
    parser.add_argument("--output_dir", type=Path, required=True, help="Gets <policy>/<task>/instances.log")
    parser.add_argument("--unit", choices=UNITS, default="word", help="What has a delay in the logs")
    return parser


def instances_by_task(args: argparse.Namespace) -> dict[str, list[Instance]]:
    """All instances, named; every line of the lists must have one."""
    keys, tasks = ((args.lists / name).read_text(encoding="utf-8").splitlines() for name in ("key", "task"))
    instances = merge_instances([shard / LOG_NAME for shard in args.shards], args.unit)
    if [i.index for i in instances] != list(range(len(keys))):
        raise ValueError(
            f"{len(instances)} instances in {len(args.shards)} logs, {args.lists}/key has {len(keys)} lines"
        )
    found: dict[str, list[Instance]] = {}
    for instance in instances:
        task = tasks[instance.index]
        extra = {"key": keys[instance.index], "task": task, "policy": args.policy, **instance.extra}
        found.setdefault(task, []).append(replace(instance, extra=extra))
    return found


def check_scores(folder: Path, instances: list[Instance], unit: Unit) -> dict[str, float]:
    """Latency scores of a log by SimulEval; an error where ours are others."""
    ours = score_latency(instances, unit)
    if ours.empty == len(instances):
        return {}  # SimulEval fails on it
    theirs = simuleval_latency(folder, unit)
    for name, value in theirs.items():
        own = ours.value(name)
        if own is None or abs(own - value) > TOLERANCE:
            raise ValueError(f"{folder / LOG_NAME}: {name} is {value:.4f} in SimulEval but {own} by our count")
    return theirs


def main(cmd: list[str] | None = None) -> None:
    """Writes the logs and prints a line per task."""
    with fail_with_one_line():
        args = get_parser().parse_args(cmd)
        for task, instances in sorted(instances_by_task(args).items()):
            folder = args.output_dir / PolicySpec.parse(args.policy).folder / task
            write_instances(folder / LOG_NAME, instances)
            scores = check_scores(folder, instances, args.unit)
            shown = "  ".join(f"{name} {value:.3f}" for name, value in scores.items()) or "all answers are empty"
            print(f"{task}: {len(instances)} instances  {shown}")


if __name__ == "__main__":
    main()
