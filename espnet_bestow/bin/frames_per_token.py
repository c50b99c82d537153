"""How many encoder frames a written token takes: the default of wait-k's ``step``.

Reads what stage 10 counted. A step above the rate of speech falls further behind with every token; a step below it asks
for tokens that have not been spoken.
"""

import argparse
import statistics
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, positive_int, rate_in_hz
from espnet_bestow.datadir.directory import read_table
from espnet_bestow.simul.examples import wanted


def get_parser() -> argparse.ArgumentParser:
    """Options of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--stats_dir", type=Path, required=True, help="Holds speech_shape and text_shape")
    parser.add_argument("--utt2task", type=Path, help="Tasks of the rows (None: all rows count)")
    parser.add_argument("--tasks", nargs="+", default=["asr", "ast"], help="Tasks or families of tasks that count")
    parser.add_argument("--fs", type=rate_in_hz, default=16000, help="Sampling rate of the audio")
    parser.add_argument("--frame_ms", type=positive_int, default=80, help="Length of an encoder frame")
    return parser


def frames_per_token(args: argparse.Namespace) -> list[float]:
    """Sorted, one value per row; the end token, which nobody speaks, does not count."""
    samples = read_shapes(args.stats_dir / "speech_shape")
    tokens = read_shapes(args.stats_dir / "text_shape")
    tasks = read_table(args.utt2task) if args.utt2task is not None else {}
    if missing := sorted(set(samples) - set(tokens)):
        raise ValueError(f"utterance '{missing[0]}' of {args.stats_dir}/speech_shape: no row in text_shape")
    per_frame = args.fs * args.frame_ms / 1000
    rates = [
        samples[uid] / per_frame / (tokens[uid] - 1)
        for uid in samples
        if tokens[uid] > 1 and (args.utt2task is None or wanted(tasks.get(uid, ""), args.tasks))
    ]
    if not rates:
        raise ValueError(f"{args.stats_dir}: none of {len(samples)} rows has a task of {' '.join(args.tasks)}")
    return sorted(rates)


def read_shapes(path: Path) -> dict[str, int]:
    """First number of each row of a shape file."""
    return {uid: int(shape.split(",")[0]) for uid, shape in read_table(path).items()}


def main(cmd: list[str] | None = None) -> None:
    """Prints the step, and the distribution it comes from."""
    with fail_with_one_line():
        args = get_parser().parse_args(cmd)
        rates = frames_per_token(args)
        low, median, high = statistics.quantiles(rates, n=4) if len(rates) > 1 else rates * 3
        print(
            f"{max(1, round(median))} frames per token: median {median:.2f} of {len(rates)} rows, "
            f"half of them {low:.2f} to {high:.2f}"
        )


if __name__ == "__main__":
    main()
