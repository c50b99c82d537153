"""Decode a data dir: ``python -m espnet_bestow.bin.bestow_inference --bestow_train_config ... --output_dir ...``.

Writes ESPnet's layout ``<output_dir>/1best_recog/{text,token,score}``.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from espnet2.fileio.datadir_writer import DatadirWriter
from espnet2.utils import config_argparse
from espnet2.utils.types import str2bool, str2triple_str, str_or_none
from tqdm import tqdm

from espnet_bestow.audio import AudioError
from espnet_bestow.bin.arguments import longest_seconds
from espnet_bestow.circles import CIRCLES
from espnet_bestow.datadir.source import AudioSource, read_source
from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.inference import DecodingOptions, Speech2Text
from espnet_bestow.model_dir import ModelDirError
from espnet_bestow.preprocess import BestowPreprocessor
from espnet_bestow.prompt import PromptError


def get_parser() -> config_argparse.ArgumentParser:
    """Options of decoding."""
    parser = config_argparse.ArgumentParser(
        description="BESTOW decoding", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--log_level", type=lambda x: x.upper(), default="INFO", help="Level of the log on stderr")
    parser.add_argument("--output_dir", type=str, required=True)
    parser.add_argument("--ngpu", type=int, default=0, help="0 decodes on the CPU")
    parser.add_argument("--num_workers", type=int, default=1, help="Data-loader workers")
    parser.add_argument("--batch_size", type=int, default=16, help="Utterances decoded together")
    parser.add_argument("--progress", type=str2bool, default=True, help="Progress bar on stderr")

    group = parser.add_argument_group("Input data")
    group.add_argument("--data_path_and_name_and_type", type=str2triple_str, required=True, action="append")
    group.add_argument("--key_file", type=str_or_none, help="Decode only these utterances (splitting into jobs)")

    group = parser.add_argument_group("Model")
    group.add_argument("--bestow_train_config", type=str_or_none, help="config.yaml that training wrote")
    group.add_argument("--bestow_model_file", type=str_or_none, help="Checkpoint")
    group.add_argument("--model_tag", type=str_or_none, help="Instead: a directory, a packed zip, or a hub tag")

    group = parser.add_argument_group("Writing the answer")
    group.add_argument("--beam_size", type=int, default=5, help="1 is greedy")
    group.add_argument("--length_penalty", type=float, default=1.0)
    group.add_argument("--max_tokens", type=int, default=200, help="Longest answer")
    group.add_argument(
        "--longest",
        type=longest_seconds,
        help="Seconds of audio that are answered at once: longer recordings are cut at pauses, and the answers joined",
    )
    group.add_argument("--sampling", type=str2bool, default=False, help="Draw tokens instead of searching")
    group.add_argument("--temperature", type=float, default=1.0)
    group.add_argument("--top_k", type=int, default=0)
    group.add_argument("--top_p", type=float, default=1.0)
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--circles",
        type=int,
        nargs="*",
        default=CIRCLES,
        help="How often one, two, three, ... tokens may follow themselves (greedy and sampling); none: any number",
    )
    return parser


def build(args: argparse.Namespace) -> Speech2Text:
    """The model that the options name."""
    names = DecodingOptions.__dataclass_fields__
    options = DecodingOptions(**{name: getattr(args, name) for name in names})
    device = "cuda" if args.ngpu > 0 else "cpu"
    if args.model_tag:
        return Speech2Text.from_pretrained(args.model_tag, options, device)
    if not (args.bestow_train_config and args.bestow_model_file):
        raise SystemExit("bestow_inference: give --bestow_train_config and --bestow_model_file, or --model_tag")
    return Speech2Text.from_files(args.bestow_train_config, args.bestow_model_file, options, device)


class AudioReader:
    """Reads what a wav.scp names, in a data-loader worker, before the model's own preprocessing.

    ESPnet's reader would take audio of any rate for the model's, knows no pipes here, and names no utterance.

    Args:
        rate: of the model, in Hz.
        preprocess: what comes after.
    """

    def __init__(self, rate: int, preprocess: BestowPreprocessor):
        self.rate = rate
        self.preprocess = preprocess

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
        """The preprocessed utterance; errors name it."""
        speech = data["speech"]
        if isinstance(speech, str):
            try:
                speech = read_source(AudioSource(speech), self.rate, uid=uid)
            except AudioError as error:
                # The way home from a worker is open only to errors that are made of one message.
                raise BadUtteranceError(str(error)) from None
        return self.preprocess(uid, {**data, "speech": speech})


def check_keys(data: Sequence[tuple[str, str, str]], key_file: str | None) -> list[str]:
    """The utterances to decode; all files must hold the same ones in the same order, as ESPnet reads them in step."""
    first, *others = [(path, _keys(path)) for path, *_ in data]
    for path, keys in others:
        missing = sorted(set(first[1]) - set(keys))
        if missing:
            raise BadUtteranceError(f"utterance {missing[0]!r}: {path} has no line for it ({len(missing)} missing)")
        if keys != first[1]:
            line = next(n for n, (a, b) in enumerate(zip_longest(keys, first[1]), 1) if a != b)
            raise BadUtteranceError(
                f"utterance {keys[line - 1]!r}: line {line} of {path} is not that of {first[0]}; sort both alike"
            )
    if key_file is None:
        return first[1]
    wanted = _keys(key_file)
    unknown = sorted(set(wanted) - set(first[1]))
    if unknown:
        raise BadUtteranceError(f"utterance {unknown[0]!r} of {key_file}: {first[0]} has no line for it")
    return wanted


def _keys(path: str) -> list[str]:
    return [line.split(maxsplit=1)[0] for line in Path(path).read_text("utf-8").splitlines() if line.strip()]


def batches(args: argparse.Namespace, s2t: Speech2Text) -> Any:
    """ESPnet's streaming iterator over the data, with the model's own preprocessing."""
    from espnet_bestow.task import BestowTask

    data = [
        (path, name, "text" if (name, kind) == ("speech", "sound") else kind)
        for path, name, kind in args.data_path_and_name_and_type
    ]
    rate = s2t.sample_rate
    return BestowTask.build_streaming_iterator(
        data,
        preprocess_fn=AudioReader(rate, BestowPreprocessor(False, s2t.template, s2t.default_prompt, rate=rate)),
        collate_fn=BestowTask.build_collate_fn(args, train=False),
        key_file=args.key_file,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        dtype="float32",
        inference=True,
    )


def inference(args: argparse.Namespace) -> None:
    """Decodes everything and writes the results; one real-time factor at the end."""
    total = len(check_keys(args.data_path_and_name_and_type, args.key_file))
    s2t = build(args)
    started, audio = time.perf_counter(), 0.0
    bar = tqdm(total=total, unit="utt", disable=not args.progress or None, file=sys.stderr)
    with DatadirWriter(args.output_dir) as writer:
        out = writer["1best_recog"]
        for keys, batch in batches(args, s2t):
            lengths = batch["speech_lengths"].tolist()
            speech = [row[:n].numpy() for row, n in zip(batch["speech"], lengths, strict=True)]
            prompts = [
                row[:n].tolist() for row, n in zip(batch["prompt"], batch["prompt_lengths"].tolist(), strict=True)
            ]
            for key, result in zip(keys, s2t.answers(speech, prompts, keys), strict=True):
                out["text"][key] = " ".join(result.text.split())  # a row is a line
                out["token"][key] = " ".join(result.tokens)
                out["score"][key] = f"{result.score:.6f}"
            audio += sum(lengths) / s2t.sample_rate
            bar.update(len(keys))
    bar.close()
    seconds = time.perf_counter() - started
    logging.info(f"{total} utterances, {audio:.1f} s of audio in {seconds:.1f} s: RTF {seconds / max(audio, 1e-9):.3f}")


def main(cmd: Sequence[str] | None = None) -> None:
    """Entry point."""
    args = get_parser().parse_args(cmd)
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s (%(module)s:%(lineno)d) %(levelname)s: %(message)s", stream=sys.stderr
    )
    try:
        inference(args)
    except (BadUtteranceError, PromptError, ModelDirError, FileNotFoundError) as error:
        # From a data-loader worker the message comes with that worker's traceback; its last line is the error.
        line = str(error).strip().splitlines()[-1]
        sys.exit(f"bestow_inference: {line.removeprefix(f'{type(error).__module__}.{type(error).__name__}: ')}")


if __name__ == "__main__":
    main()
