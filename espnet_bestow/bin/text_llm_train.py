"""Train a text LLM: ``python -m espnet_bestow.bin.text_llm_train --config train_llm.yaml ...``.

With ``--train_tasks`` and ``--valid_tasks`` it learns the tasks of data directories as well, from transcripts in the
place of speech: an LLM that can be asked, which BLSP and SLM begin with.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_bestow.bin.arguments import fail_with_one_line, true_or_false
from espnet_bestow.datadir import DataDir
from espnet_bestow.llm.text_config import read_config
from espnet_bestow.llm.text_lines import read_lines, unlearned
from espnet_bestow.llm.text_training import TextData, TextTraining
from espnet_bestow.llm.tokenizer import load_tokenizer
from espnet_bestow.prompt import TEMPLATES, PromptTemplate, asked_in_text


def text_tasks(path: str | None, template: PromptTemplate) -> list[list[int]]:
    """What a data directory's rows ask about their transcripts, and the answers, as token ids; answers are learned."""
    if path is None:
        return []
    data = DataDir.read(path)
    prompts, answers, found = data.table("prompt"), data.table("text"), []
    said = data.table("src_text")
    data.check_ids()
    for uid, words in sorted(said.items()):
        if not words:
            raise ValueError(f"{path}/src_text: row '{uid}' has no words")
        example = template.encode(asked_in_text(prompts[uid], words), answers[uid], uid)
        found.append([*unlearned(example.prompt), *example.answer])
    return found


def get_parser() -> argparse.ArgumentParser:
    """Options of stage 7."""
    parser = argparse.ArgumentParser(
        description="Train a small causal LM on lines of text; writes a transformers directory.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML with model and training options")
    parser.add_argument("--tokenizer", required=True, help="Directory or hub id")
    parser.add_argument("--train_text", type=Path, required=True, help="UTF-8, one example per line")
    parser.add_argument("--valid_text", type=Path, required=True, help="UTF-8, one example per line")
    parser.add_argument("--train_tasks", help="Data directory whose tasks are learned from its transcripts, src_text")
    parser.add_argument("--valid_tasks", help="The same for validation")
    parser.add_argument("--template", choices=sorted(TEMPLATES), default="plain", help="Of these")
    parser.add_argument("--output_dir", type=Path, required=True, help="Directory to write")
    parser.add_argument(
        "--resume",
        type=true_or_false,
        default=False,
        help="Continue from <output_dir>/checkpoint.pth",
    )
    parser.add_argument("--seed", type=int, default=0, help="Of weights and order")
    parser.add_argument("--device", default="cpu", help="torch device")
    return parser


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    with fail_with_one_line():
        config, tokenizer = read_config(args.config), load_tokenizer(args.tokenizer)
        template = TEMPLATES[args.template](tokenizer, config.model.get("max_position_embeddings"))
        train, valid = (read_lines([path]) for path in (args.train_text, args.valid_text))
        tasks = (text_tasks(path, template) for path in (args.train_tasks, args.valid_tasks))
        data = TextData(train, valid, *tasks)
        training = TextTraining(config, tokenizer, data, args.output_dir, args.seed, args.device)
        training.run(args.resume)


if __name__ == "__main__":
    main()
