"""BLSP's modality adapter: three gated convolutions that each halve the frames, and a bottleneck.

In BLSP it is all that is trained: the LLM is to go on with speech as it goes on with the transcript, and
``bestow_continue`` writes down how it does.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from espnet_bestow.connectors.base import Speech
from espnet_bestow.connectors.prepend import STRIDE, Prepending, halve
from espnet_bestow.encoders.lengths import valid_frames


class BLSPConnector(Prepending):
    """``connector: blsp``. The defaults are BLSP's, for Whisper's frames of 20 ms.

    Args:
        text_dim: D_llm.
        speech_dim: D_enc.
        num_layers: convolutions, each of which halves the frames.
        kernel_size: of each, odd.
        bottleneck: inner width of what follows.
    """

    def __init__(
        self, text_dim: int, speech_dim: int, num_layers: int = 3, kernel_size: int = 5, bottleneck: int = 512
    ):
        super().__init__()
        if num_layers < 1 or kernel_size % 2 == 0:
            raise ValueError(f"connector: num_layers={num_layers} must be >= 1 and kernel_size={kernel_size} odd")
        widths = [speech_dim] * num_layers + [text_dim]
        self.convolutions = nn.ModuleList(
            nn.Conv1d(before, 2 * after, kernel_size, STRIDE, kernel_size // 2) for before, after in pairwise(widths)
        )
        self.narrow = nn.Linear(text_dim, bottleneck, bias=False)
        self.wide = nn.Linear(bottleneck, text_dim, bias=False)
        self.norm = nn.LayerNorm(text_dim)

    def positions(self, frames: int) -> int:
        """See base class."""
        return -(-frames // STRIDE ** len(self.convolutions))

    def adapt(self, speech: Speech) -> tuple[Tensor, Tensor]:
        """See base class."""
        x, lengths = speech.frames, speech.lengths
        for convolution in self.convolutions:
            x, lengths = halve(convolution, x, lengths)
            x = F.glu(x)
        x = x + self.wide(F.gelu(self.narrow(x)))
        return self.norm(x), valid_frames(lengths, x.shape[1])
