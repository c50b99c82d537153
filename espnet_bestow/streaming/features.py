"""Features of audio that is still arriving, equal to those of the whole recording.

A frame of an STFT needs the samples under its window: half of them lie in the future (12.5 ms of 25), and are waited
for. No frame is computed from a chunk's edge.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from espnet_bestow.streaming.listener import Ear

PER_FRAME = ("GlobalMVN",)
"""ESPnet's normalisations that look at one frame only, by name: this room works without ESPnet."""


class Span(NamedTuple):
    """Feature frames of one session that are wanted next: ``first`` to before ``last``."""

    ear: Ear
    first: int
    last: int
    past: Any  # what the normalisation remembers of the frames before `first`


class StreamFeatures:
    """The features of a model, span by span.

    Args:
        features: the model's, with ESPnet's `default` frontend, no pre-encoder, and a normalisation that needs no
            future: running_mvn, global_mvn or none.
    """

    def __init__(self, features: nn.Module):
        frontend: Any = getattr(features, "frontend", None)
        stft = getattr(frontend, "stft", None)
        if stft is None or not stft.center:
            raise ValueError(f"frontend {type(frontend).__name__} cannot stream; frontend: default can, with center")
        preencoder = getattr(features, "preencoder", None)
        if preencoder is not None:
            raise ValueError(f"preencoder {type(preencoder).__name__} cannot stream chunk by chunk; leave it out")
        normalize: Any = getattr(features, "normalize", None)
        self._running = hasattr(normalize, "advance")
        if not (normalize is None or self._running or type(normalize).__name__ in PER_FRAME):
            raise ValueError(
                f"normalize {type(normalize).__name__} needs the whole recording; running_mvn and global_mvn can stream"
            )
        self.frontend = frontend
        self.normalize = normalize
        self.sample_rate: int = frontend.logmel.mel_options["sr"]
        self.bins: int = frontend.output_size()
        self.hop: int = stft.hop_length
        self.n_fft: int = stft.n_fft
        self.reach: int = stft.win_length // 2 if stft.window is not None else stft.n_fft // 2
        # Frames from the start of a piece of audio that a mirrored edge can reach.
        self.guard = -(-stft.n_fft // (2 * stft.hop_length))

    def needed(self, frames: int) -> int:
        """Samples that the first ``frames`` frames depend on."""
        return (frames - 1) * self.hop + self.reach if frames > 0 else 0

    def available(self, ear: Ear) -> int:
        """Frames that no later sample can change."""
        if ear.ended:
            return ear.received // self.hop + 1 if ear.received else 0
        return (ear.received - self.reach) // self.hop + 1 if ear.received >= self.reach else 0

    def open(self) -> Any:
        """What the normalisation remembers of no frames."""
        device = self.frontend.logmel.melmat.device
        return self.normalize.start(1, self.bins, device) if self._running else None

    @torch.inference_mode()
    def __call__(self, spans: Sequence[Span]) -> tuple[list[Tensor], list[Any]]:
        """Frames (T_i, 80) of each span, and what the normalisation remembers after them."""
        lengths = torch.tensor([span.last - span.first for span in spans], device=self.frontend.logmel.melmat.device)
        size = int(lengths.max())
        offsets = [min(self.guard, span.first) for span in spans]
        feats = self._logmel([self._samples(span, offset) for span, offset in zip(spans, offsets, strict=True)])
        rows = [each[offset : offset + size] for each, offset in zip(feats, offsets, strict=True)]
        pasts: list[Any] = [None] * len(spans)
        x = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, T, 80)
        if self._running:
            x, after = self.normalize.advance(
                x, type(spans[0].past)(*map(torch.cat, zip(*[span.past for span in spans], strict=True))), lengths
            )
            pasts = [type(after)(*each) for each in zip(*[field.split(1) for field in after], strict=True)]
        elif self.normalize is not None:
            x, _ = self.normalize(x, lengths)
        return [row[: span.last - span.first] for row, span in zip(x, spans, strict=True)], pasts

    def _samples(self, span: Span, offset: int) -> Tensor:
        """The audio under a span's windows, and before it that of ``offset`` frames that are thrown away."""
        start = (span.first - offset) * self.hop
        stop = (span.last - 1) * self.hop + self.n_fft // 2
        return span.ear.samples(min(start, span.ear.received), min(stop, span.ear.received))

    def _logmel(self, audio: Sequence[Tensor]) -> Tensor:
        """(S_i,) each -> (B, T, 80); silence follows, as it follows an utterance in the whole pass."""
        waveform = nn.utils.rnn.pad_sequence(list(audio), batch_first=True)  # (B, S)
        waveform = nn.functional.pad(waveform, (0, self.n_fft)).to(self.frontend.logmel.melmat.device)
        return self.frontend(waveform, torch.full((len(audio),), waveform.shape[1], device=waveform.device))[0]
