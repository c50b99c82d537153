"""The shell command ``bestow``."""

import argparse
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from espnet_bestow import __version__
from espnet_bestow.bin.arguments import longest_seconds, positive_int

if TYPE_CHECKING:
    import numpy as np

    from espnet_bestow.inference import Speech2Text


@dataclass(frozen=True)
class Answer:
    """What came of one file: a text, or an error."""

    file: str
    text: str = ""
    tokens: tuple[str, ...] = ()
    score: float = 0.0
    error: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry of this file in ``--format json``."""
        if self.error is not None:
            return {"file": self.file, "error": self.error}
        tokens = list(self.tokens)
        return {"file": self.file, "text": self.text, "tokens": tokens, "score": self.score}


def answer_files(s2t: "Speech2Text", files: Sequence[str], prompt: str, batch_size: int) -> Iterator[Answer]:
    """Answers in the order of ``files``; one that cannot be read or answered costs the others nothing."""
    from espnet_bestow.audio import AudioError, read_audio
    from espnet_bestow.errors import BadUtteranceError
    from espnet_bestow.preprocess import check_length

    ids = s2t.template.encode_prompt(prompt)

    def answer(heard: Sequence[tuple[str, "np.ndarray"]]) -> list[Answer]:
        names, audio = [file for file, _ in heard], [samples for _, samples in heard]
        try:
            results = s2t.answers(audio, [ids] * len(heard), names) if heard else []
        except BadUtteranceError as error:
            if len(heard) == 1:
                return [Answer(names[0], error=str(error))]
            return [found for one in heard for found in answer([one])]
        return [Answer(file, r.text, tuple(r.tokens), r.score) for file, r in zip(names, results, strict=True)]

    for begin in range(0, len(files), batch_size):
        group = files[begin : begin + batch_size]
        heard, unheard = [], {}
        for place, file in enumerate(group):
            try:
                heard.append((file, check_length(file, read_audio(file, s2t.sample_rate), s2t.sample_rate)))
            except (AudioError, BadUtteranceError) as error:
                unheard[place] = Answer(file, error=str(error))
        answers = iter(answer(heard))
        yield from (unheard[place] if place in unheard else next(answers) for place in range(len(group)))


class Writer(ABC):
    """One form of output; its name is a value of ``--format``.

    Args:
        out: where to.
        several: whether there is more than one file.
    """

    def __init__(self, out: TextIO, several: bool):
        self.out, self.several = out, several

    @abstractmethod
    def add(self, answer: Answer) -> None:
        """The next file."""

    def close(self) -> None:
        """After the last file."""
        self.out.flush()


class TextWriter(Writer):
    """The text of a file on a line, whatever white space it has; after its name and a tab if there are several."""

    def add(self, answer: Answer) -> None:
        if answer.error is None:
            name = f"{answer.file}\t" if self.several else ""
            self.out.write(f"{name}{' '.join(answer.text.split())}\n")
            self.out.flush()


class JsonWriter(Writer):
    """One list with an entry per file, errors included."""

    def __init__(self, out: TextIO, several: bool):
        super().__init__(out, several)
        self.entries: list[dict[str, Any]] = []

    def add(self, answer: Answer) -> None:
        self.entries.append(answer.as_json())

    def close(self) -> None:
        json.dump(self.entries, self.out, ensure_ascii=False, indent=1)
        self.out.write("\n")
        super().close()


WRITERS: dict[str, type[Writer]] = {"text": TextWriter, "json": JsonWriter}


def transcribe(args: argparse.Namespace) -> int:
    """``bestow transcribe``; returns the exit status."""
    from tqdm import tqdm

    from espnet_bestow.inference import DecodingOptions, Speech2Text

    options = DecodingOptions(beam_size=args.beam_size, max_tokens=args.max_tokens, longest=args.longest)
    s2t = Speech2Text.from_pretrained(args.model, options, args.device)
    if args.quantize:
        s2t.quantize(args.quantize)
    prompt = args.prompt or s2t.default_prompt
    s2t.template.encode_prompt(prompt)  # a bad prompt is an error before any work
    failed = 0
    with _output(args.output) as out:
        writer = WRITERS[args.format](out, len(args.files) > 1)
        answers = answer_files(s2t, args.files, prompt, args.batch_size)
        hide = not sys.stderr.isatty()
        try:
            for answer in tqdm(answers, total=len(args.files), unit="file", disable=hide):
                writer.add(answer)
                if answer.error is not None:
                    failed += 1
                    tqdm.write(f"bestow: {answer.error}", file=sys.stderr)
        finally:
            writer.close()  # what was answered is never lost
    return 1 if failed else 0


def stream(args: argparse.Namespace) -> int:
    """``bestow stream``; returns the exit status."""
    from espnet_bestow.audio import audio_pieces
    from espnet_bestow.inference import Speech2Text
    from espnet_bestow.simul.policy_spec import PolicySpec
    from espnet_bestow.streaming.live import WORD_WRITERS, in_real_time, raw_chunks, run_live
    from espnet_bestow.streaming.session import SessionOptions

    spec = PolicySpec.parse(args.policy)
    silence = args.segment_silence or None
    options = SessionOptions(args.max_tokens, segment_silence=silence, max_seconds=args.max_seconds or None)
    s2t = Speech2Text.from_pretrained(args.model, device=args.device)
    if args.quantize:
        s2t.quantize(args.quantize)
    listener = s2t.listener(args.right_context, args.context)
    session = s2t.stream(args.prompt, spec.name, options, listener, **dict(spec.options))
    if args.file == "-":
        chunks = raw_chunks(sys.stdin.buffer, args.rate or s2t.sample_rate, args.channels, args.chunk)
    else:
        chunks = audio_pieces(args.file, args.chunk)
        if args.speed == "real":
            chunks = in_real_time(chunks)
    run_live(session, chunks, WORD_WRITERS[args.format](sys.stdout))
    return 0


def curve(args: argparse.Namespace) -> int:
    """``bestow curve``; returns the exit status."""
    from espnet_bestow.bin import bestow_curve

    return bestow_curve.run(bestow_curve.get_parser("bestow curve").parse_args(args.rest))


@contextmanager
def _output(path: Path | None) -> Iterator[TextIO]:
    if path is None:
        yield sys.stdout
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        yield out


def _context(text: str) -> tuple[int, int]:
    left, comma, right = text.partition(",")
    if not comma or not left.isdigit() or not right.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not <left>,<right> in frames, such as 70,6")
    return int(left), int(right)


def get_parser() -> argparse.ArgumentParser:
    """Options of ``bestow``."""
    parser = argparse.ArgumentParser(prog="bestow", description="Speech LLMs that listen.")
    parser.add_argument("--version", action="version", version=f"bestow {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "transcribe",
        help="answer an instruction about audio files",
        description="Answer an instruction about audio files. Exit status 1: some file failed; "
        "2: nothing could be done.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="audio of any rate and channels")
    command.add_argument("--model", required=True, help="experiment, packed zip or hub repository")
    command.add_argument("--prompt", help="instruction; default: the one of the model")
    command.add_argument("--format", choices=sorted(WRITERS), default="text", help="of the output")
    command.add_argument("--beam_size", type=positive_int, default=5, help="1 is greedy")
    command.add_argument("--max_tokens", type=positive_int, default=200, help="longest answer")
    what = "seconds of audio that are answered at once; longer files are cut at pauses"
    command.add_argument("--longest", type=longest_seconds, help=what)
    command.add_argument("--batch_size", type=positive_int, default=8, help="files decoded together")
    command.add_argument("--device", default="cpu", help="torch device")
    command.add_argument("--quantize", choices=("bf16", "int8"), help="smaller weights: faster on a CPU, a little off")
    command.add_argument("--output", type=Path, help="file to write instead of standard output")
    command.set_defaults(run=transcribe)
    _add_stream(commands)
    # Its options are those of bin/bestow_curve.py; to know them here would make every `bestow --help` load torch.
    command = commands.add_parser("curve", help="quality over latency, for several policies", add_help=False)
    command.set_defaults(run=curve)
    return parser


def _add_stream(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    command = commands.add_parser(
        "stream",
        help="answer while the audio is still arriving",
        description="Answer an instruction about audio while it is still arriving: words as soon as they are known.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    command.add_argument("file", metavar="FILE", help="audio of any rate and channels; - is raw 16-bit PCM from a pipe")
    command.add_argument("--model", required=True, help="experiment, packed zip or hub repository")
    command.add_argument("--prompt", help="instruction; default: the one of the model")
    command.add_argument("--policy", default="wait_k", help="with options: wait_k:k=8,step=2 align_att:threshold=4")
    command.add_argument("--format", choices=("words", "text", "jsonl"), default="words", help="of the output")
    command.add_argument("--speed", choices=("real", "fast"), default="real", help="of a file")
    command.add_argument("--rate", type=positive_int, help="of raw PCM; default: the model's")
    command.add_argument("--channels", type=positive_int, default=1, help="of raw PCM")
    command.add_argument("--chunk", type=float, default=0.08, help="seconds of audio given at a time")
    command.add_argument("--right_context", type=int, help="frames beyond the visible ones of a recomputed encoder")
    command.add_argument("--context", type=_context, help="attention context of a cache-aware encoder: 70,6")
    command.add_argument("--segment_silence", type=float, default=1.0, help="seconds that end a segment; 0: never")
    command.add_argument("--max_seconds", type=float, default=60.0, help="longest segment; 0: any length")
    command.add_argument("--max_tokens", type=positive_int, default=200, help="longest text of a segment")
    command.add_argument("--device", default="cpu", help="torch device")
    command.add_argument("--quantize", choices=("bf16", "int8"), help="smaller weights: faster on a CPU, a little off")
    command.set_defaults(run=stream)


def main(cmd: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = get_parser()
    args, rest = parser.parse_known_args(cmd)
    if rest and args.run is not curve:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        return int(args.run(args))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"bestow: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
