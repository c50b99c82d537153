"""BLSP's data: ``python -m espnet_bestow.bin.bestow_continue --data_dir D --llm L --output_dir O``.

An LLM reads each transcript and goes on. A model that is then asked to go on with the *speech*, and answers the same,
has learned to hear as the LLM reads, without any labels but transcripts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from espnet_bestow.bin.arguments import (
    add_text_options,
    fail_with_one_line,
    positive_int,
    read_data_dir,
    true_or_false,
)
from espnet_bestow.datadir import (
    REJECTED,
    AudioSource,
    DataDir,
    Problem,
    count_problems,
    write_rejected,
)
from espnet_bestow.llm.causal_lm import load_causal_lm
from espnet_bestow.llm.continuation import Continuer
from espnet_bestow.prompt import TEMPLATES, asked_in_text, build_template

PROMPT = "Continue the text above in a coherent and engaging style with less than 40 words."
SUFFIX = "-continued"
"""Behind the ids of rows, so that they can stand beside those that they are made of."""


def continue_data_dir(args: argparse.Namespace) -> None:
    """Writes the directory, and ``rejected.tsv`` with every row that it leaves out."""
    data = read_data_dir(args)
    if data.segments:
        raise ValueError(f"{data.path}: cut the segments into utterances first (stage 3)")
    said = data.table("src_text")
    data.check_ids()
    every = _of_tasks(data, args.tasks)
    problems = [Problem(uid, args.src_text_file, "empty src_text", "no words") for uid in every if not said[uid]]
    rows = [uid for uid in every if said[uid]]
    if args.own_prompts:
        asked = {uid: data.table("prompt")[uid] for uid in rows}
    else:
        asked = _one_of_each(data, rows, args.prompt)
    template = build_template(args.template, args.llm)
    longest = args.max_prompt_tokens
    if template.max_tokens is not None:
        longest = min(longest, template.max_tokens - args.max_tokens)
    prompts = {}
    for uid, prompt in asked.items():
        ids = template.encode_prompt(asked_in_text(prompt, said[uid]), uid)
        if len(ids) > longest:
            value = f"{len(ids)} tokens, at most {longest}"
            problems.append(Problem(uid, args.src_text_file, "prompt too long", value))
        else:
            prompts[uid] = ids
    model = load_causal_lm(args.llm, args.dtype).to(args.device)
    going_on = Continuer(model, template.end, args.max_tokens, args.batch_size)
    each = tqdm(going_on(prompts), total=len(prompts), desc="continue", unit="row")
    written = {uid: " ".join(template.decode(ids).split()) for uid, ids in each}
    problems += [Problem(uid, args.llm, "empty continuation", said[uid]) for uid in prompts if not written[uid]]
    kept = {uid: written[uid] for uid in prompts if written[uid]}
    tables = _tables(data, kept, asked, keep_tasks=args.own_prompts)
    DataDir(args.output_dir, tables).write(args.output_dir)
    write_rejected(args.output_dir / REJECTED, problems)
    left_out = f"; left out: {count_problems(problems)}, see {args.output_dir / REJECTED}" if problems else ""
    print(f"{args.output_dir}: {len(kept)} rows{left_out}", file=sys.stderr)


def _of_tasks(data: DataDir, tasks: Sequence[str] | None) -> list[str]:
    """All rows of some tasks (None: of all)."""
    return [uid for uid in data.uids() if tasks is None or data.table("utt2task")[uid] in tasks]


def _one_of_each(data: DataDir, rows: Sequence[str], prompt: str) -> dict[str, str]:
    """``prompt`` for the first of these rows about each recording."""
    sources = data.sources()
    first: dict[AudioSource, str] = {}
    for uid in rows:
        first.setdefault(sources[uid], uid)
    return dict.fromkeys(first.values(), prompt)


def _tables(
    data: DataDir, written: dict[str, str], asked: dict[str, str], keep_tasks: bool
) -> dict[str, dict[str, str]]:
    """Those of the new directory, whose rows have ids of their own."""
    names = ["wav.scp", "utt2spk", "src_text", "utt2num_samples", *(["utt2task"] if keep_tasks else [])]
    tables = {name: data.tables[name] for name in names if name in data.tables}
    tables |= {"text": written, "prompt": asked}
    tables.setdefault("utt2task", dict.fromkeys(written, "continuation"))
    return {name: {uid + SUFFIX: rows[uid] for uid in written if uid in rows} for name, rows in tables.items()}


def get_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = argparse.ArgumentParser(
        description="Rows that ask to go on with speech as an LLM goes on with its transcript (BLSP).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_dir", required=True, help="Directory to read: recordings with transcripts, no segments")
    parser.add_argument("--output_dir", type=Path, required=True, help="Directory to write")
    parser.add_argument("--llm", required=True, help="Directory or hub id of the LLM that will be trained with")
    parser.add_argument("--template", choices=sorted(TEMPLATES), default="chat", help="That of the training")
    parser.add_argument("--prompt", default=PROMPT, help="What the LLM is asked; the transcript stands before it")
    parser.add_argument(
        "--own_prompts",
        type=true_or_false,
        default=False,
        help="Ask what each row asks, not one thing about each recording",
    )
    parser.add_argument("--tasks", nargs="+", help="Only rows of these tasks, e.g. ast_en-de; default: all")
    parser.add_argument("--max_tokens", type=positive_int, default=64, help="Longest continuation")
    parser.add_argument("--max_prompt_tokens", type=positive_int, default=192, help="Longer prompts are left out")
    parser.add_argument("--batch_size", type=positive_int, default=16, help="Prompts at once")
    parser.add_argument("--device", default="cpu", help="torch device")
    parser.add_argument("--dtype", default="float32", help="Precision of the LLM, e.g. bfloat16")
    add_text_options(parser)
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    with fail_with_one_line():
        continue_data_dir(get_parser().parse_args(cmd))


if __name__ == "__main__":
    main()
