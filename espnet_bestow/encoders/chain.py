"""ESPnet's encoders have outputs of several kinds, and may be followed by a post-encoder; here are frames."""

from torch import Tensor, nn

from espnet_bestow.encoders.padding import ignores_padding


def final(frames: Tensor | tuple[Tensor, object]) -> Tensor:
    """The output of an ESPnet encoder; those with intermediate CTC return a tuple, whose first part it is."""
    return frames[0] if isinstance(frames, tuple) else frames


class EncoderChain(nn.Module):
    """An ESPnet encoder followed by an ESPnet post-encoder."""

    def __init__(self, encoder: nn.Module, postencoder: nn.Module):
        super().__init__()
        self.encoder = encoder
        self.postencoder = postencoder

    @property
    def ignores_padding(self) -> bool:
        """See :mod:`.padding`."""
        return ignores_padding(self.encoder) and ignores_padding(self.postencoder)

    def forward(self, feats: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        """(B, T, 80) -> (B, F, D_enc)."""
        frames, lengths, _ = self.encoder(feats, lengths)
        return *self.postencoder(final(frames), lengths), None
