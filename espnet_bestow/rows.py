"""The rows of a training batch: which are about one recording, what the LLM reads of them, which are transcripts."""

import torch
from torch import Tensor


def recordings(*what: Tensor) -> tuple[Tensor, Tensor]:
    """Which neighbouring rows hold different instructions about one recording?

    Batches sorted by length bring such rows together.

    Args:
        what: of each row (B, ...), is the same of one recording: its samples, how many they are, what was said.

    Returns:
        the first row (R,) of each of R recordings, and which recording (B,) each row is about.
    """
    repeats = torch.stack([(each[1:] == each[:-1])[:, None].flatten(1).all(1) for each in what]).all(0)
    recording = torch.cat([repeats.new_zeros(1), ~repeats]).cumsum(0)
    return torch.cat([repeats.new_ones(1), ~repeats]).nonzero()[:, 0], recording


def join(prompt: Tensor, prompt_lengths: Tensor, text: Tensor, text_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Prompt and answer of each row, one after the other, right-padded, without the last token (nothing follows it).

    Args:
        prompt: (B, P) ids.
        prompt_lengths: (B,).
        text: (B, A) ids.
        text_lengths: (B,).

    Returns:
        ids (B, U) with 0 at padding, and mask (B, U).
    """
    lengths = prompt_lengths + text_lengths - 1
    column = torch.arange(int(lengths.max()), device=prompt.device).expand(len(lengths), -1)
    after = column - prompt_lengths[:, None]
    answer = text.gather(1, after.clamp(0, text.shape[1] - 1))
    ids = torch.where(after < 0, prompt.gather(1, column.clamp(max=prompt.shape[1] - 1)), answer)
    mask = column < lengths[:, None]
    return ids.masked_fill(~mask, 0), mask


def is_transcript(text: Tensor, text_lengths: Tensor, src_text: Tensor, src_text_lengths: Tensor) -> Tensor:
    """Which rows answer with exactly what was said (and the end token), (B,) bool.

    Args:
        text: (B, A) ids, padded with -1.
        text_lengths: (B,).
        src_text: (B, N) ids, padded with -1.
        src_text_lengths: (B,).
    """
    width = min(text.shape[1], src_text.shape[1])
    inside = torch.arange(width, device=text.device) < src_text_lengths[:, None]
    same = ((text[:, :width] == src_text[:, :width]) | ~inside).all(1)
    return same & (text_lengths == src_text_lengths + 1)
