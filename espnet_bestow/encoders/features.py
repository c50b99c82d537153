"""What comes before an encoder: ESPnet's frontend, SpecAugment, normalisation and pre-encoder, as one module."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from espnet2.asr.preencoder.abs_preencoder import AbsPreEncoder
from espnet2.asr.specaug.abs_specaug import AbsSpecAug
from espnet2.layers.abs_normalize import AbsNormalize
from torch import Tensor, nn

from espnet_bestow.encoders.log_mel import NativeLogMel
from espnet_bestow.encoders.padding import ignores_padding
from espnet_bestow.silence import SilenceAround

SILENCE = 1024
"""Samples after the longest utterance of a batch: half a window of up to 128 ms."""


class Features(nn.Module):
    """ESPnet's chain before the encoder, each part optional: frontend, SpecAugment, normalisation, pre-encoder.

    Our own is what comes before it in training: silence around the recordings.
    """

    def __init__(
        self,
        frontend: AbsFrontend | None = None,
        specaug: AbsSpecAug | None = None,
        normalize: AbsNormalize | None = None,
        preencoder: AbsPreEncoder | None = None,
        silence: SilenceAround | None = None,
    ):
        super().__init__()
        self.silence = silence
        self.frontend = frontend
        self.specaug = specaug
        self.normalize = normalize
        self.preencoder = preencoder
        self._log_mel: NativeLogMel | None = None

    @property
    def ignores_padding(self) -> bool:
        """See :mod:`.padding`."""
        return all(map(ignores_padding, (self.frontend, self.normalize, self.preencoder)))

    def extract(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, T, 80), before augmentation and normalisation.

        ESPnet's STFT mirrors the end of the padded batch, so that the last frames of an utterance would depend on
        whether it is the longest one. With silence after all of them, a batch gives what its members give alone.
        """
        if self.frontend is None:
            return waveform, lengths
        with in_full_precision(waveform.device):
            return self._extract(waveform, lengths)

    def _extract(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        assert self.frontend is not None
        plain = waveform.dim() == 2 and waveform.dtype == torch.float32 and not waveform.requires_grad
        if plain and NativeLogMel.fits(self.frontend):
            return self._extract_natively(waveform, lengths)
        waveform = F.pad(waveform[:, : int(lengths.max())], (0, SILENCE))
        feats, lengths = self.frontend(waveform, lengths)
        return feats[:, : int(lengths.max())].contiguous(), lengths  # ESPnet's sinc takes no views

    def _extract_natively(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self._log_mel is None:  # not before: weights may have been loaded since
            self._log_mel = NativeLogMel(self.frontend)
        counts = lengths // self._log_mel.hop + 1
        audio = [row[:size] for row, size in zip(waveform, lengths.tolist(), strict=True)]
        return self._log_mel(audio, [0] * len(audio), counts.tolist()), counts

    def surround(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a model in training hears of recordings (B, S), its lengths (B,), and silence before them (B,)."""
        if self.silence is not None and self.training:
            return self.silence(waveform, lengths)
        return waveform, lengths, torch.zeros_like(lengths)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S) -> (B, T, 80)."""
        return self.refine(*self.extract(waveform, lengths))

    def refine(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What follows :meth:`extract`: (B, T, 80) -> (B, T, 80), of a pre-encoder less and wider."""
        if self.specaug is not None and self.training:
            feats, lengths = self.specaug(feats, lengths)
        if self.normalize is not None:
            with in_full_precision(feats.device):
                feats, lengths = self.normalize(feats, lengths)
        if self.preencoder is not None:
            feats, lengths = self.preencoder(feats, lengths)
        return feats, lengths


def in_full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context without autocast: the power of loud samples is more than float16 holds, its logarithm less exact.

    ESPnet's models compute features so, too.
    """
    enabled = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if enabled else nullcontext()
