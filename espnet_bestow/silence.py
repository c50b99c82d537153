"""Silence around recordings in training, as a talk that is cut at its pauses has it around every sentence.

Recordings of a corpus begin and end with speech. Who learns from them alone has never had to say nothing, and writes
sentences that nobody said as soon as a speaker pauses.
"""

import torch
from torch import Tensor, nn

QUIETEST, LOUDEST = -100.0, -60.0
"""dB of full scale, of the noise that a silence consists of; that of digital audio may also be exactly 0."""


class SilenceAround(nn.Module):
    """Half of the recordings of a batch get silence before and after them, of lengths drawn anew each time.

    Args:
        rate: samples per second.
        before: seconds, at most.
        after: seconds, at most.
    """

    def __init__(self, rate: int, before: float = 0.2, after: float = 1.0):
        super().__init__()
        if before < 0.0 or after < 0.0:
            raise ValueError(f"silence_conf: before={before} and after={after} must be >= 0")
        self.longest = round(before * rate), round(after * rate)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """waveform (B, S), lengths (B,) -> (B, S'), (B,), and what of the latter is silence before (B,)."""
        batch, device = len(waveform), waveform.device
        some = torch.rand(batch, device=device) < 0.5
        before, after = ((torch.rand(batch, device=device) * (most + 1)).long() * some for most in self.longest)
        sizes = before + lengths + after
        level = 10.0 ** (torch.empty(batch, device=device).uniform_(QUIETEST, LOUDEST) / 20.0)
        level = level * (torch.rand(batch, device=device) < 0.5) * some
        heard = waveform.new_zeros(batch, int(sizes.max()))
        rows = zip(waveform, heard, *(each.tolist() for each in (before, lengths, sizes, level)), strict=True)
        for recording, row, begin, length, size, loud in rows:
            if loud > 0.0:
                row[:size].normal_(std=loud)
            row[begin : begin + length] = recording[:length]
        return heard, sizes, before
