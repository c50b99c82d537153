"""BLSP's data: ``python -m espnet_bestow.bin.bestow_continue --data_dir D --llm L --output_dir O``.

An LLM reads each transcript and goes on. A model that is then asked to go on with the *speech*, and answers the same,
has learned to hear as the LLM reads, without any labels but transcripts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from espnet_bestow.bin.arguments import add_text_options, fail_with_one_line, positive_int, read_data_dir
from espnet_bestow.datadir import REJECTED, DataDir, Problem, count_problems, write_rejected
from espnet_bestow.llm.causal_lm import load_causal_lm
from espnet_bestow.llm.continuation import Continuer
from espnet_bestow.prompt import TEMPLATES, PromptError, build_template

PROMPT = "Continue the following text in a coherent and engaging style with less than 40 words."
SUFFIX = "-continued"
"""Behind the ids of rows, so that they can stand beside those that they are made of."""


def continue_data_dir(args: argparse.Namespace) -> None:
    """Writes the directory, and ``rejected.tsv`` with every recording that it leaves out."""
    data = read_data_dir(args)
    if "src_text" not in data.tables:
        raise ValueError(f"{data.path / args.src_text_file}: missing file: it holds the transcripts")
    said = _transcripts(data)
    template = build_template(args.template, args.llm)
    prompts, problems = {}, []
    for uid, words in said.items():
        try:
            ids = template.encode_prompt(f"{args.prompt} {words}", uid)
        except PromptError as error:
            problems.append(Problem(uid, args.src_text_file, "prompt too long", str(error)))
            continue
        room = None if template.max_tokens is None else template.max_tokens - args.max_tokens
        longest = args.max_prompt_tokens if room is None else min(args.max_prompt_tokens, room)
        if len(ids) > longest:
            problems.append(
                Problem(uid, args.src_text_file, "prompt too long", f"{len(ids)} tokens, at most {longest}")
            )
        else:
            prompts[uid] = ids
    model = load_causal_lm(args.llm, args.dtype).to(args.device)
    going_on = Continuer(model, template.end, args.max_tokens, args.batch_size)
    each = tqdm(going_on(prompts), total=len(prompts), desc="continue", unit="row")
    written = {uid: " ".join(template.decode(ids).split()) for uid, ids in each}
    problems += [Problem(uid, args.llm, "empty continuation", said[uid]) for uid in prompts if not written[uid]]
    tables = _tables(data, {uid: written[uid] for uid in sorted(prompts) if written[uid]}, args.prompt)
    DataDir(args.output_dir, tables).write(args.output_dir)
    write_rejected(args.output_dir / REJECTED, problems)
    left_out = f"; left out: {count_problems(problems)}, see {args.output_dir / REJECTED}" if problems else ""
    print(f"{args.output_dir}: {len(tables['text'])} of {len(said)} recordings{left_out}", file=sys.stderr)


def _transcripts(data: DataDir) -> dict[str, str]:
    """What was said in each recording, by the first of its rows that has it."""
    first: dict[object, str] = {}
    sources = data.sources()
    for uid, words in sorted(data.tables["src_text"].items()):
        if words and uid in sources:
            first.setdefault(sources[uid], uid)
    return {uid: data.tables["src_text"][uid] for uid in first.values()}


def _tables(data: DataDir, written: dict[str, str], prompt: str) -> dict[str, dict[str, str]]:
    """Those of the new directory, whose rows have ids of their own."""
    kept = {
        name: {uid + SUFFIX: data.tables[name][uid] for uid in written if uid in data.tables[name]}
        for name in ("wav.scp", "utt2spk", "src_text", "utt2num_samples")
        if name in data.tables
    }
    new = {
        "text": written,
        "prompt": dict.fromkeys(written, prompt),
        "utt2task": dict.fromkeys(written, "continuation"),
    }
    return kept | {name: {uid + SUFFIX: value for uid, value in rows.items()} for name, rows in new.items()}


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
    parser.add_argument("--prompt", default=PROMPT, help="What the LLM is asked; the transcript follows it")
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
