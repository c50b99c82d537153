"""How many frames of an encoder come at once when it streams: a property of encoder and features together."""

from typing import Any, Literal

from torch import nn

from espnet_bestow.visibility import Chunks

WHOLE: Literal["whole"] = "whole"
"""The context of a cache-aware encoder in which every frame sees all others."""

PER_FRAME = ("GlobalMVN",)
"""ESPnet's normalisations that look at one frame only, by name: streaming works without ESPnet."""


def needs_the_whole(features: nn.Module) -> bool:
    """Whether the features of the first frame depend on the last one: utterance_mvn."""
    normalize = getattr(features, "normalize", None)
    return not (normalize is None or hasattr(normalize, "advance") or type(normalize).__name__ in PER_FRAME)


def chunks_of(encoder: Any, features: nn.Module) -> Chunks:
    """The chunks in which a session gets the frames of the pass that has just been made.

    Encoders that are recomputed on the growing audio, also because of a context or of features that need the whole of
    it, show their frames one by one.
    """
    if needs_the_whole(features):
        return Chunks()
    if hasattr(encoder, "chunks"):
        return encoder.chunks
    return blocks_of(encoder) if hasattr(encoder, "forward_infer") and encoder.block_size > 0 else Chunks()


def blocks_of(encoder: Any) -> Chunks:
    """The blocks of ESPnet's contextual block encoders: before the first, there are the frames to its left."""
    return Chunks(encoder.hop_size, encoder.block_size - encoder.look_ahead - encoder.hop_size)
