"""Features of audio that is still arriving, equal to those of the whole recording.

A frame of an STFT needs the samples under its window: half of them lie in the future (12.5 ms of 25), and are waited
for. No frame is computed from a chunk's edge.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from espnet_bestow.encoders.chunks import needs_the_whole
from espnet_bestow.streaming.listener import Ear

_ROW = 128
"""Hops of audio that are transformed in one row: fewer leave more of it empty, very long rows are slow."""


class Span(NamedTuple):
    """Feature frames of one session that are wanted next: ``first`` to before ``last``."""

    ear: Ear
    first: int
    last: int
    past: Any  # what the normalisation remembers of the frames before `first`


class LogMel:
    """ESPnet's `default` frontend, any frames of a recording at a time.

    Args:
        frontend: the model's.
    """

    def __init__(self, frontend: Any):
        if not self.suits(frontend):
            raise ValueError(f"frontend {type(frontend).__name__} cannot stream; frontend: default can, with center")
        stft = frontend.stft
        self.frontend = frontend
        self.sample_rate: int = frontend.logmel.mel_options["sr"]
        self.bins: int = frontend.output_size()
        self.hop: int = stft.hop_length
        self.n_fft: int = stft.n_fft
        self.reach: int = stft.win_length // 2 if stft.window is not None else stft.n_fft // 2
        # Frames from the start of a piece of audio that a mirrored edge can reach.
        self.guard = -(-stft.n_fft // (2 * stft.hop_length))

    @staticmethod
    def suits(frontend: Any) -> bool:
        """Whether a frontend works frame by frame."""
        return getattr(getattr(frontend, "stft", None), "center", False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.frontend.logmel.melmat.device

    def complete(self, samples: int) -> int:
        """Frames whose windows lie in the first ``samples`` samples: nothing later changes them."""
        return (samples - self.reach) // self.hop + 1 if samples >= self.reach else 0

    def all(self, samples: int) -> int:
        """Frames of a recording of ``samples`` samples, the last of which see the silence after it."""
        return samples // self.hop + 1 if samples else 0

    @torch.inference_mode()
    def frames(self, audio: Sequence[Tensor], first: Sequence[int], last: Sequence[int]) -> list[Tensor]:
        """Frames ``first`` to before ``last`` (T_i, 80) of recordings (S_i,), behind each of which is silence.

        The pieces of audio that they need lie one after the other in rows of about the same length, however different
        theirs are: each is as long as the windows of its frames reach, so none of these sees into another piece.
        """
        pieces = [self._piece(*each) for each in zip(audio, first, last, strict=True)]
        hops = [-(-len(piece) // self.hop) for piece, _ in pieces]
        width = max([_ROW, *hops])
        places, row, at = [], 0, 0  # row and hop
        for count in hops:
            row, at = (row, at) if at + count <= width else (row + 1, 0)
            places.append((row, at))
            at += count
        waveform = torch.zeros(row + 1, max((width if row else at) * self.hop, self.n_fft))  # (R, S)
        for (piece, _), (row, at) in zip(pieces, places, strict=True):
            waveform[row, at * self.hop : at * self.hop + len(piece)] = piece
        feats = self._transform(waveform.to(self.device))
        return [
            feats[row, at + offset : at + offset + end - begin]
            for (_, offset), (row, at), begin, end in zip(pieces, places, first, last, strict=True)
        ]

    def _transform(self, waveform: Tensor) -> Tensor:
        """waveform (R, S) -> (R, T, 80): what the frontend does with one channel; nothing is padding, so no masks."""
        spectrum, _ = self.frontend.stft(waveform, None)  # (R, T, n_fft / 2 + 1, 2)
        real, imaginary = spectrum.unbind(-1)  # PyTorch is slow to sum over pairs
        return self.frontend.logmel(real.square() + imaginary.square(), None)[0]

    def _piece(self, samples: Tensor, first: int, last: int) -> tuple[Tensor, int]:
        """The samples (n,) under the windows of some frames, and how many hops after its start the first one stands."""
        half = self.n_fft // 2
        if last <= first:
            return samples[:0], 0
        start = first - self.guard
        piece = samples[max(start, 0) * self.hop : (last - 1) * self.hop + half]
        length = (last - 1 - max(start, 0)) * self.hop + half
        piece = nn.functional.pad(piece, (0, max(length, half + 1) - len(piece)))
        if start > 0:
            return piece, self.guard
        # A recording's first windows see its beginning mirrored.
        before = nn.functional.pad(piece[1 : half + 1].flip(0), (self.guard * self.hop - half, 0))
        return torch.cat([before, piece]), self.guard + first


class StreamFeatures(LogMel):
    """The features of a model, span by span.

    Args:
        features: the model's, with ESPnet's `default` frontend, no pre-encoder, and a normalisation that needs no
            future: running_mvn, global_mvn or none.
    """

    def __init__(self, features: nn.Module):
        super().__init__(getattr(features, "frontend", None))
        preencoder = getattr(features, "preencoder", None)
        if preencoder is not None:
            raise ValueError(f"preencoder {type(preencoder).__name__} cannot stream chunk by chunk; leave it out")
        normalize: Any = getattr(features, "normalize", None)
        self._running = hasattr(normalize, "advance")
        if needs_the_whole(features):
            raise ValueError(
                f"normalize {type(normalize).__name__} needs the whole recording; running_mvn and global_mvn can stream"
            )
        self.normalize = normalize

    def needed(self, frames: int) -> int:
        """Samples that the first ``frames`` frames depend on."""
        return (frames - 1) * self.hop + self.reach if frames > 0 else 0

    def available(self, ear: Ear) -> int:
        """Frames that no later sample can change."""
        return self.all(ear.received) if ear.ended else self.complete(ear.received)

    def open(self) -> Any:
        """What the normalisation remembers of no frames."""
        return self.normalize.start(1, self.bins, self.device) if self._running else None

    @torch.inference_mode()
    def __call__(self, spans: Sequence[Span]) -> tuple[list[Tensor], list[Any]]:
        """Frames (T_i, 80) of each span, and what the normalisation remembers after them."""
        rows = self.frames([s.ear.samples() for s in spans], [s.first for s in spans], [s.last for s in spans])
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
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
