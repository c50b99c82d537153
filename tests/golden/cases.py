"""What the golden tensors are of: shapes, inputs and masks, shared by their maker and the tests.

Imports neither ESPnet nor NeMo, so that both environments can read it.
"""

from torch import Tensor
from transformers import NemotronAsrStreamingEncoder, NemotronAsrStreamingEncoderConfig

from tests.golden.weights import drawn, fill

CONTEXTS = [(14, 13), (14, 6), (14, 1), (14, 0)]
LENGTHS = [333, 170]  # feature frames: 42 and 22 frames, three chunks of 14, more than the left context
BINS, WIDTH, HEADS, BLOCKS, INNER, CHANNELS = 16, 16, 2, 2, 64, 4

TEXT, SPEECH, TEXT_DIM, SPEECH_DIM, DIM = 7, 24, 12, 10, 16
WAIT_K, STEP = 2, 3
SPEECH_LENGTHS = [24, 13]


def encoder() -> NemotronAsrStreamingEncoder:
    """The tiny cache-aware FastConformer."""
    config = NemotronAsrStreamingEncoderConfig(
        num_mel_bins=BINS,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        subsampling_conv_channels=CHANNELS,
        layerdrop=0.0,
    )
    model = NemotronAsrStreamingEncoder(config).eval()
    fill(model.named_parameters())
    return model


def features() -> Tensor:
    """(2, 333, 16), with 0 at padding."""
    x = drawn("features", (len(LENGTHS), max(LENGTHS), BINS))
    for row, length in enumerate(LENGTHS):
        x[row, length:] = 0.0
    return x


def wait_k_visible() -> list[list[int]]:
    """The paper's rule written out: answer token n sees (n + K) * L frames, the prompt is one token long."""
    return [[min(length, (n + WAIT_K) * STEP) for n in range(TEXT)] for length in SPEECH_LENGTHS]
