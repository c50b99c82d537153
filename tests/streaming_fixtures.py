"""A model small and loud enough that every frame it hears changes what it says; nothing of it is trained."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from espnet_bestow.connectors import CONNECTORS
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.model import BestowModel
from espnet_bestow.prompt import PromptTemplate, build_template
from espnet_bestow.streaming.listener import Encode, RecomputedListener
from espnet_bestow.streaming.pool import Pool
from espnet_bestow.streaming.session import Session, SessionOptions, Word
from espnet_bestow.visibility import Chunks

RATE = 16000
HOP = 400
PROMPT = "turn on the light"
FREE = SessionOptions(max_tokens=16, circles=())


class _Windows(nn.Module):
    """Frames of HOP samples that know their two neighbours on each side."""

    def __init__(self, dim: int):
        super().__init__()
        self.project = nn.Linear(HOP, dim)
        self.mix = nn.Conv1d(dim, dim, 5, padding=2)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, None]:
        frames = lengths // HOP
        count = int(frames.max())
        x = torch.tanh(8.0 * self.project(waveform[:, : count * HOP].unflatten(1, (count, HOP))))
        real = torch.arange(count) < frames[:, None]
        x = self.mix((x * real[..., None]).transpose(1, 2)).transpose(1, 2)
        return x, frames, None


class _AsIs(nn.Module):
    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        return waveform, lengths


def loud_model(llm: Path, connector: str = "cross_attention", seed: int = 3) -> BestowModel:
    """Sharp attention to speech whose content outweighs the text."""
    torch.manual_seed(seed)
    encoder, lm = _Windows(8), CausalLM(str(llm))
    options = {
        "cross_attention": {"dim": 16},
        "recurrent": {"hidden": 16},
        "per_layer": {"gate": 1.0},
    }[connector]
    model = BestowModel(
        encoder, CONNECTORS[connector].beside(lm.width, lm.depth, 8, num_heads=2, **options), lm, _AsIs()
    ).eval()
    for name, parameter in model.connector.named_parameters():
        if "cross_attention" in name and parameter.dim() > 1:
            parameter.data *= 4.0
        if name == "text_out.weight":
            parameter.data *= 2.0
    return model


def template_of(llm: Path) -> PromptTemplate:
    """The plain one."""
    return build_template("plain", str(llm))


def encode_with(model: BestowModel) -> Encode:
    """The frames of each recording."""
    return lambda waveform, lengths: model.encode(waveform, lengths).rows()


def listener_of(model: BestowModel, right_context: int = 3) -> RecomputedListener:
    """The recomputed one; two frames of the right context reach the encoder's windows."""
    return RecomputedListener(encode_with(model), RATE, HOP, right_context, shortest=HOP)


class ByChunks(RecomputedListener):
    """The same frames, but four at a time, as encoders make them that go chunk by chunk."""

    chunks = Chunks(4)

    def needed(self, frames: int) -> int:
        return super().needed(self.chunks.whole(frames))


def talk(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise that changes all the time."""
    rng = np.random.default_rng(seed)
    return (0.3 * rng.standard_normal(int(seconds * RATE))).astype(np.float32)


def run(session: Session, audio: np.ndarray, size: int, rate: int | None = None) -> list[Word]:
    """Pushes audio in pieces; all words."""
    words = []
    for begin in range(0, len(audio), size):
        words += session.push(audio[begin : begin + size], rate)
    words += session.finish()
    session.close()
    return words


def plain(words: list[Word]) -> list[tuple]:
    """All that must not depend on the clock."""
    return [(w.text, round(w.seen, 6), w.span, w.tokens, w.visible, w.before, w.segment) for w in words]


def lone(pool: Pool) -> Pool:
    """A pool of its own with the same model."""
    return Pool(pool.model, pool.listener, pool.template)
