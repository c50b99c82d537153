"""Keep the rows of a formatted data directory that can be used; count and list the others."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from espnet_bestow.bin.arguments import fail_with_one_line, rate_in_hz, true_or_false
from espnet_bestow.bin.merge_configs import read_yaml
from espnet_bestow.datadir import (
    REJECTED,
    DataDir,
    DataDirError,
    Problem,
    count_problems,
    read_rejected,
    write_rejected,
)

if TYPE_CHECKING:
    from espnet_bestow.prompt import PromptTemplate

_SHOWN = 10


def text_problems(data: DataDir) -> list[Problem]:
    """Rows with an empty answer, an empty instruction or no task."""
    return [
        Problem(uid, str(data.path / name), f"empty {name}", "no words")
        for name in ("text", "prompt", "src_text", "utt2task")
        for uid, words in sorted(data.tables.get(name, {}).items())
        if not words
    ]


def duration_problems(data: DataDir, args: argparse.Namespace) -> list[Problem]:
    """Rows shorter than the minimum or longer than the maximum."""
    problems = []
    for uid, samples in sorted(data.tables.get("utt2num_samples", {}).items()):
        seconds = int(samples) / args.fs
        file = data.tables["wav.scp"].get(uid, "")
        if seconds < args.min_wav_duration:
            limit = f"minimum {args.min_wav_duration:g} s"
            problems.append(Problem(uid, file, "too short", f"{seconds:.3f} s, {limit}"))
        elif seconds > args.max_wav_duration:
            limit = f"maximum {args.max_wav_duration:g} s"
            problems.append(Problem(uid, file, "too long", f"{seconds:.3f} s, {limit}"))
    return problems


def context_problems(data: DataDir, uids: list[str], args: argparse.Namespace) -> list[Problem]:
    """Rows whose prompt and answer do not fit into the LLM's context."""
    from espnet_bestow.prompt import PromptError

    template = prompt_template(args)
    problems = []
    for uid in tqdm(uids, f"check texts of {data.path}"):
        try:
            template.check(data.tables["prompt"][uid], data.tables["text"][uid], uid)
        except PromptError as error:
            value = str(error).removeprefix(f"utterance {uid!r}: ")
            file = str(data.path / "text")
            problems.append(Problem(uid, file, "over the LLM's context", value))
    return problems


def prompt_template(args: argparse.Namespace) -> "PromptTemplate":
    """The template of training, for the LLM that exists or for the one that will be trained."""
    from espnet_bestow.llm.text_config import model_config, read_config
    from espnet_bestow.llm.tokenizer import load_tokenizer
    from espnet_bestow.prompt import TEMPLATES, build_template

    config = read_yaml(args.bestow_config) if args.bestow_config else {}
    name, options = config.get("template", "chat"), dict(config.get("template_conf", {}))
    if args.llm:
        return build_template(name, args.llm, **options)
    tokenizer = load_tokenizer(args.tokenizer)
    context = model_config(read_config(args.llm_config).model, tokenizer).max_position_embeddings
    context = min(context, options.pop("max_length", None) or context)
    return TEMPLATES[name](tokenizer, max_tokens=context, **options)


def find_problems(data: DataDir, args: argparse.Namespace) -> list[Problem]:
    """All problems of all rows, sorted by row; audio problems come from formatting."""
    problems = read_rejected(data.path / REJECTED)
    # A row whose audio was refused is missing in wav.scp for that reason alone.
    refused = {problem.uid for problem in problems}
    problems += [problem for problem in data.id_problems() if problem.uid not in refused]
    problems += text_problems(data) + duration_problems(data, args)
    if args.llm or args.tokenizer:
        bad = {problem.uid for problem in problems}
        good = [uid for uid in data.uids() if uid not in bad]
        problems += context_problems(data, good, args)
    return sorted(problems, key=lambda problem: problem.uid)


def filter_data_dir(args: argparse.Namespace) -> None:
    """Write the usable rows and ``rejected.tsv``."""
    data = DataDir.read(args.data_dir)
    problems = find_problems(data, args)
    bad = {problem.uid for problem in problems}
    good = [uid for uid in data.uids() if uid not in bad]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    listing = args.output_dir / REJECTED
    write_rejected(listing, problems)
    summary = f"{args.output_dir}: {len(good)} of {len(good) + len(bad)} rows kept"
    if problems:
        summary += f"; rejected: {count_problems(problems)} (listed in {listing})"
        for problem in problems[:_SHOWN]:
            print(f"  {problem}", file=sys.stderr)
        if len(problems) > _SHOWN:
            print(f"  ... and {len(problems) - _SHOWN} more", file=sys.stderr)
    print(summary, file=sys.stderr)
    if problems and not args.skip_bad_utts:
        raise DataDirError(f"{data.path}: {len(bad)} bad rows and --skip_bad_utts is false")
    if not good:
        raise DataDirError(f"{data.path}: no usable row is left")
    data.select(good).write(args.output_dir)


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 4."""
    parser = argparse.ArgumentParser(
        description="Drop rows with bad audio, ids that differ between files, empty text, "
        "wrong length or text over the LLM's context; list every one of them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Directory written by format_data_dir")
    parser.add_argument("--output_dir", type=Path, required=True, help="Directory to write")
    parser.add_argument("--fs", type=rate_in_hz, default=16000, help="Sampling rate, e.g. 16k")
    parser.add_argument("--min_wav_duration", type=float, default=0.1, help="Seconds")
    parser.add_argument("--max_wav_duration", type=float, default=30.0, help="Seconds")
    parser.add_argument("--skip_bad_utts", type=true_or_false, default=True, help="false: any problem is fatal")
    parser.add_argument("--llm", default="", help="LLM (path or hub id) to check text length for")
    parser.add_argument("--tokenizer", default="", help="Instead: tokenizer of an LLM to be trained")
    parser.add_argument("--llm_config", type=Path, help="And the configuration of that LLM")
    parser.add_argument("--bestow_config", type=Path, help="Training configuration that names the template")
    return parser


def main(cmd: list[str] | None = None) -> None:
    """Entry point."""
    parser = get_parser()
    args = parser.parse_args(cmd)
    if bool(args.tokenizer) != bool(args.llm_config):
        parser.error("--tokenizer and --llm_config belong together")
    with fail_with_one_line():
        filter_data_dir(args)


if __name__ == "__main__":
    main()
