"""Whisper's log-mel features as an ESPnet frontend."""

import torch
from espnet2.asr.frontend.abs_frontend import AbsFrontend
from torch.nn import functional as F
from transformers import WhisperFeatureExtractor

from espnet_bestow.encoders.lengths import valid_frames
from espnet_bestow.errors import BadRowError

WINDOW_FRAMES = 3000


class WhisperLogMelFrontend(AbsFrontend):
    """Log-mel as Whisper was trained on: 25 ms windows every 10 ms, 80 dB of range per utterance.

    Equal to transformers' WhisperFeatureExtractor on every frame that sees any audio; what follows
    in its 30 s window is silence, which is left out here. (Audio that ends in the last 40 samples
    of the window differs in the last frame, where the extractor reflects it.)

    Args:
        n_mels: Mel bins, 80, or 128 for large-v3.
        fs: Sampling rate; Whisper knows 16000 only.
    """

    ignores_padding = True

    def __init__(self, n_mels: int = 80, fs: int | str = 16000):
        super().__init__()
        if str(fs).lower() not in ("16000", "16k"):
            raise ValueError(f"whisper_log_mel: fs {fs!r}; Whisper takes 16000 Hz audio")
        extractor = WhisperFeatureExtractor(feature_size=n_mels)
        self.n_mels = n_mels
        self.n_fft: int = extractor.n_fft
        self.hop_length: int = extractor.hop_length
        mel = torch.from_numpy(extractor.mel_filters).float()
        self.register_buffer("mel", mel, persistent=False)  # (n_fft // 2 + 1, n_mels)
        self.register_buffer("window", torch.hann_window(self.n_fft), persistent=False)

    def output_size(self) -> int:
        return self.n_mels

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, S) waveform, (B,) samples -> (B, T, n_mels) log-mel, (B,) frames."""
        half = self.n_fft // 2
        if int(input_lengths.min()) <= half:
            row = int(input_lengths.argmin())
            raise BadRowError(
                row, f"{int(input_lengths[row])} samples, for whisper_log_mel fewer than half a window ({half + 1})"
            )
        input = input.masked_fill(~valid_frames(input_lengths, input.shape[1]), 0.0)
        # Zeros instead of a reflection behind the end: the audio is followed by silence, whether
        # the utterance is alone or padded in a batch.
        padded = F.pad(F.pad(input[:, None], (half, 0), mode="reflect")[:, 0], (0, self.n_fft))
        spectrum = torch.stft(
            padded.float(),
            self.n_fft,
            self.hop_length,
            window=self.window,
            center=False,
            return_complex=True,
        )
        power = spectrum.abs().square()  # (B, n_fft // 2 + 1, T)
        frames = self._frames(input_lengths)
        log_mel = (power.transpose(1, 2) @ self.mel).clamp(min=1e-10).log10()
        log_mel = log_mel[:, : int(frames.max())]
        valid = valid_frames(frames, log_mel.shape[1])[:, :, None]
        loudest = log_mel.masked_fill(~valid, -torch.inf).amax(dim=(1, 2), keepdim=True)
        log_mel = (torch.maximum(log_mel, loudest - 8.0) + 4.0) / 4.0
        return log_mel.masked_fill(~valid, 0.0).to(input.dtype), frames

    def _frames(self, samples: torch.Tensor) -> torch.Tensor:
        """(B,) samples -> (B,) frames that see any of them and fit into the window."""
        seeing = (samples + self.n_fft // 2 - 1) // self.hop_length + 1
        return torch.minimum(seeing, (samples // self.hop_length).clamp(min=WINDOW_FRAMES))
