"""80 ms frames for any ESPnet encoder: strided convolutions as an ESPnet pre-encoder."""

import torch
from espnet2.asr.preencoder.abs_preencoder import AbsPreEncoder
from torch import nn

from espnet_bestow.encoders.lengths import valid_frames
from espnet_bestow.encoders.strided import StridedConv1d


class ConvSubsampling(AbsPreEncoder):
    """``preencoder: conv1d``: features of 10 ms become frames of 10 ms times ``2 ** num_layers``.

    ESPnet's encoders sub-sample by 4 (conv2d) at a cost that dominates small models. Behind this one they take
    ``input_layer: linear`` and see the paper's P = 8 by default.

    Args:
        input_size: feature bins.
        output_size: width D of the frames.
        num_layers: convolutions of stride 2.
        kernel_size: of the first one; the others have 3.
    """

    ignores_padding = True

    def __init__(self, input_size: int, output_size: int = 256, num_layers: int = 3, kernel_size: int = 5):
        super().__init__()
        if num_layers < 1 or kernel_size % 2 == 0:
            raise ValueError(f"conv1d: num_layers={num_layers} must be >= 1 and kernel_size={kernel_size} odd")
        widths = [input_size] + [output_size] * num_layers
        kernels = [kernel_size] + [3] * (num_layers - 1)
        self.layers = nn.ModuleList(
            StridedConv1d(a, b, k, stride=2, padding=k // 2)
            for a, b, k in zip(widths, widths[1:], kernels, strict=False)
        )

    def output_size(self) -> int:
        """D."""
        return self.layers[-1].out_channels  # type: ignore[return-value]

    def forward(self, input: torch.Tensor, input_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T, 80), (B,) -> (B, F, D), (B,); padding is silent before every layer, so it changes nothing."""
        x, lengths = input, input_lengths
        for layer in self.layers:
            x = x.masked_fill(~valid_frames(lengths, x.shape[1])[..., None], 0.0)
            x = nn.functional.gelu(layer(x.transpose(1, 2))).transpose(1, 2)
            lengths = (lengths - 1) // 2 + 1
        return x, lengths
