"""Plain text for an LLM: one example per line, read, encoded and batched."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""Label of padding."""

# Lines of similar length are looked for among this many batches; more saves little padding.
_POOL = 50


class TextLineError(ValueError):
    """A text file or line that cannot be used; names it."""


def read_lines(paths: Iterable[Path | str], has_ids: bool = False) -> list[str]:
    """All lines of text files, stripped.

    Args:
        paths: UTF-8 files.
        has_ids: the first column of each line is an utterance id, as in Kaldi, and is dropped.
    """
    lines: list[str] = []
    for path in paths:
        try:
            content = Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise TextLineError(f"{path}: not UTF-8 text ({error})") from error
        for number, line in enumerate(content.split("\n"), 1):
            text = line.strip()
            if not text:
                continue
            if has_ids:
                columns = text.split(maxsplit=1)
                if len(columns) < 2:
                    raise TextLineError(f"{path}:{number}: no text after the id in {line!r}")
                text = columns[1]
            lines.append(text)
    if not lines:
        raise TextLineError(f"no text in {', '.join(map(str, paths))}")
    return lines


def encode_lines(
    tokenizer: PreTrainedTokenizerBase, lines: Sequence[str], max_tokens: int | None = None
) -> list[Tensor]:
    """Ids of ``<s> line </s>`` for every line (the start token only where the tokenizer has one).

    Args:
        tokenizer: needs an end token.
        lines: text.
        max_tokens: a longer line is an error; None is unlimited.
    """
    if tokenizer.eos_token_id is None:
        raise TextLineError(f"tokenizer {tokenizer.name_or_path!r} has no end-of-sequence token")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    encoded = tokenizer(list(lines), add_special_tokens=False).input_ids
    out = []
    for line, ids in zip(lines, encoded, strict=True):
        ids = [*start, *ids, tokenizer.eos_token_id]
        if max_tokens is not None and len(ids) > max_tokens:
            raise TextLineError(f"a line of {len(ids)} tokens exceeds the LLM's context of {max_tokens}: {line[:60]!r}")
        out.append(torch.tensor(ids))
    return out


def unlearned(ids: Sequence[int]) -> list[int]:
    """Tokens of a row that are read but not learned: :func:`collate` knows them by being negative."""
    return [~token for token in ids]


def bucketed_batches(lengths: Sequence[int], batch_size: int, seed: int) -> list[list[int]]:
    """One epoch of batches in random order, each of rows of similar length.

    A function of its arguments, so that an interrupted run finds the same batches again.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    batches = []
    for begin in range(0, len(order), batch_size * _POOL):
        pool = sorted(order[begin : begin + batch_size * _POOL], key=lengths.__getitem__)
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def endless_batches(lengths: Sequence[int], batch_size: int, seed: int, skip: int = 0) -> Iterator[list[int]]:
    """Batches of epoch after epoch, each in its own order, from batch number ``skip`` on."""
    per_epoch = len(bucketed_batches(lengths, batch_size, seed))
    epoch, first = divmod(skip, per_epoch)
    while True:
        yield from bucketed_batches(lengths, batch_size, seed + epoch)[first:]
        epoch, first = epoch + 1, 0


def collate(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of ids -> inputs (B, U) and next-token labels (B, U), right-padded.

    Causal attention keeps padding on the right from reaching real positions, so no mask is needed.
    """
    ids = pad_sequence([torch.where(row < 0, ~row, row)[:-1] for row in rows], batch_first=True)
    labels = pad_sequence([row[1:] for row in rows], batch_first=True, padding_value=IGNORED)
    return ids, labels.where(labels >= 0, IGNORED)
