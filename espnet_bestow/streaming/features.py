"""Features of audio that is still arriving, equal to those of the whole recording.

A frame of an STFT needs the samples under its window: half of them lie in the future (12.5 ms of 25), and are waited
for. No frame is computed from a chunk's edge.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espnet_bestow.encoders.chunks import needs_the_whole
from espnet_bestow.encoders.lengths import valid_frames
from espnet_bestow.encoders.log_mel import NativeLogMel, padded_window, works_frame_by_frame
from espnet_bestow.streaming.listener import Ear


class Span(NamedTuple):
    """Frames of one session that are wanted next: ``first`` to before ``last``."""

    ear: Ear
    first: int
    last: int
    past: Any  # what was remembered after the frames before `first`
    end: int | None = None  # samples, where silence is to be heard behind so many of the ear's


class LogMel:
    """ESPnet's `default` frontend, any frames of a recording at a time.

    Args:
        frontend: the model's.
    """

    def __init__(self, frontend: Any):
        if not works_frame_by_frame(frontend):
            raise ValueError(f"frontend {type(frontend).__name__} cannot stream; frontend: default can, with center")
        stft = frontend.stft
        self.frontend = frontend
        self.sample_rate: int = frontend.logmel.mel_options["sr"]
        self.bins = self.width = int(frontend.output_size())
        self.hop: int = stft.hop_length
        self.n_fft: int = stft.n_fft
        self.reach: int = stft.win_length // 2 if stft.window is not None else stft.n_fft // 2
        self._window = padded_window(stft).to(self.device)
        self.native = NativeLogMel(frontend) if NativeLogMel.fits(frontend) else None

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

    def available(self, ear: Ear, end: int | None = None) -> int:
        """Frames that no later sample can change: of all that has come, or of the first ``end`` samples as a whole."""
        if end is not None or ear.ended:
            return self.all(ear.received if end is None else end)
        return self.complete(ear.received)

    def open(self) -> Any:
        """What is remembered of no frames."""
        return None

    def __call__(self, spans: Sequence[Span]) -> tuple[Tensor, list[Any]]:
        """Frames (B, T, 80) of each span, which mean nothing behind its last, and what is remembered after them."""
        return self.of_spans(spans), [None] * len(spans)

    def of_spans(self, spans: Sequence[Span]) -> Tensor:
        """Log-mel (B, T, 80)."""
        return self.padded([s.ear.samples(0, s.end) for s in spans], [s.first for s in spans], [s.last for s in spans])

    @torch.inference_mode()
    def padded(self, audio: Sequence[Tensor], first: Sequence[int], last: Sequence[int]) -> Tensor:
        """Frames ``first`` to before ``last`` of recordings (S_i,), behind each of which is silence: (B, T, 80).

        Rows mean nothing behind their frames.
        """
        if self.native is not None:
            return self.native(audio, first, last)
        pieces = [self._under(*each) for each in zip(audio, first, last, strict=True)]
        counts = [max(end - begin, 0) for begin, end in zip(first, last, strict=True)]
        if not any(counts):
            return torch.zeros(len(counts), 0, self.bins, device=self.device)
        windows = [piece.unfold(0, self.n_fft, self.hop) for piece in pieces if len(piece)]
        joined = torch.cat([torch.zeros(0, self.n_fft), *windows]).to(self.device) * self._window
        spectrum = torch.fft.rfft(joined)
        feats, _ = self.frontend.logmel((spectrum.real.square() + spectrum.imag.square())[None])
        return nn.utils.rnn.pad_sequence(feats[0].split(counts), batch_first=True)

    def _under(self, samples: Tensor, first: int, last: int) -> Tensor:
        """The samples (n,) under the windows of some frames, those of a frame a hop behind those of the one before."""
        half = self.n_fft // 2
        begin, end = first * self.hop - half, (last - 1) * self.hop + half
        if last <= first:
            return samples[:0]
        if begin >= 0 and end <= len(samples):
            return samples[begin:end]
        piece = samples[max(begin, 0) : end]
        if begin >= 0:
            return F.pad(piece, (0, end - begin - len(piece)))
        # A recording's first windows see its beginning mirrored.
        piece = F.pad(piece, (0, max(end, 1 - begin) - len(piece)))
        return torch.cat([piece[1 : 1 - begin].flip(0), piece[:end]])


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
        self._nothing = normalize.start(1, self.bins, self.device)[0] if self._running else None

    def needed(self, frames: int) -> int:
        """Samples that the first ``frames`` frames depend on."""
        return (frames - 1) * self.hop + self.reach if frames > 0 else 0

    def open(self) -> Any:
        """What the normalisation remembers of no frames."""
        return self._nothing

    @torch.inference_mode()
    def __call__(self, spans: Sequence[Span]) -> tuple[Tensor, list[Any]]:
        """Frames (B, T, 80) of each span, 0 behind its last, and what the normalisation remembers after them."""
        x = self.of_spans(spans)
        lengths = torch.tensor([span.last - span.first for span in spans], device=self.device)
        pasts: list[Any] = [None] * len(spans)
        if self._running:
            x, after = self.normalize.advance(x, torch.stack([span.past for span in spans]), lengths)
            pasts = list(after)
        else:
            if self.normalize is not None:
                x, _ = self.normalize(x, lengths)
            x = x.masked_fill(~valid_frames(lengths, x.shape[1])[..., None], 0.0)
        return x, pasts
