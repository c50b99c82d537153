"""Puts the logs that parallel jobs wrote together: every ``instances.log`` under the inputs, by its place there."""

import argparse
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int
from espnet_bestow.evaluate.chunk_log import write_chunk_log
from espnet_bestow.evaluate.instances import LOG_NAME, UNITS, Unit, merge_instances, write_instances
from espnet_bestow.simul.chunks import CHUNK_LOG, recordings_of


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--inputs", type=Path, nargs="+", required=True, help="Output directories of the jobs")
    parser.add_argument("--output_dir", type=Path, required=True, help="Gets the same folders with the merged logs")
    parser.add_argument("--unit", choices=UNITS, default="word", help="What has a delay in the logs")
    parser.add_argument("--instances", type=positive_int, help="How many each log must have in the end")
    return parser


def merge(inputs: list[Path], output_dir: Path, unit: Unit, expected: int | None) -> dict[Path, int]:
    """Writes the merged logs; their folders below ``output_dir``, each with its number of instances."""
    parts: dict[Path, list[Path]] = {}
    for folder in inputs:
        for log in sorted(folder.rglob(LOG_NAME)):
            # A job that had no row of some task leaves an empty log.
            if log.stat().st_size:
                parts.setdefault(log.parent.relative_to(folder), []).append(log)
    if not parts:
        raise ValueError(f"{' '.join(map(str, inputs))}: no {LOG_NAME} with anything in it")
    merged = {}
    for place, logs in sorted(parts.items()):
        instances = merge_instances(logs, unit)
        if expected is not None and len(instances) != expected:
            raise ValueError(f"{output_dir / place}: {len(instances)} instances, expected {expected}")
        write_instances(output_dir / place / LOG_NAME, instances)
        if all("chunks" in instance.extra for instance in instances):
            write_chunk_log(output_dir / place / CHUNK_LOG, recordings_of(instances))
        merged[place] = len(instances)
    return merged


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        args = get_parser().parse_args(cmd)
        for place, count in merge(args.inputs, args.output_dir, args.unit, args.instances).items():
            print(f"{args.output_dir / place / LOG_NAME}: {count} instances")


if __name__ == "__main__":
    main()
