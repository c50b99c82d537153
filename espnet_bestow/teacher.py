"""A trained model whose frames another encoder learns to make."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from espnet_bestow.connectors import Speech
from espnet_bestow.model import BestowModel


class Teacher:
    """Not a module: it is neither trained nor saved with its pupil.

    Args:
        model: its weights stay as they are.
    """

    def __init__(self, model: BestowModel):
        self.model = model.eval().requires_grad_(False)
        self._device: torch.device | None = None
        self._dtype = next(model.encoder.parameters()).dtype
        self._whole: Any = None

    @torch.no_grad()
    def __call__(self, waveform: Tensor, lengths: Tensor) -> Speech:
        """Its frames of recordings (B, S) of lengths (B,)."""
        if self._device != waveform.device:
            self._move(waveform.device)
        waveform = waveform.to(self._dtype)  # its weights stay as they are, whatever its pupil trains in
        if self._whole is None:
            return self.model.encode(waveform, lengths)
        rows = self._whole(*self.model.features(waveform, lengths))
        return Speech(pad_sequence(rows, batch_first=True), torch.tensor([len(row) for row in rows]))

    def _move(self, device: torch.device) -> None:
        self.model.to(device)
        encoder: Any = self.model.encoder
        # Natively where there are kernels for it: a step waits for these frames.
        self._whole = encoder.whole_pass() if hasattr(encoder, "whole_pass") else None
        self._device = device
