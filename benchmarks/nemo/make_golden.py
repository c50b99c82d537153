"""Writes tests/golden/nemo.npz: what NeMo 3.0 computes with the weights of tests/golden/cases.py.

    make golden-nemo    # or, where NeMo is installed: PYTHONPATH=. python benchmarks/nemo/make_golden.py

The encoder: the full pass of a padded batch in four contexts, and the shorter recording streamed (not without
look-ahead: there NeMo's stream differs from its own full pass, as it feeds zeros where the audio begins). The
connector: NeMo's TransformerDecoder between two Linears and around a residual, as the authors' adapter had it, offline
and with the wait-k mask.
"""

from itertools import pairwise
from pathlib import Path

import nemo
import numpy as np
import torch
from nemo.collections.asr.modules.transformer.transformer_decoders import TransformerDecoder
from torch import Tensor, nn

from benchmarks.nemo.peer import NemoStream, nemo_encoder
from tests.golden import cases
from tests.golden.weights import drawn, fill

OUT = Path(__file__).parents[2] / "tests" / "golden" / "nemo.npz"
BLOCKED = -10000.0  # NeMo's additive mask


@torch.inference_mode()
def encoder_tensors() -> dict[str, Tensor]:
    contexts = [list(context) for context in cases.CONTEXTS]
    theirs = nemo_encoder(cases.encoder(), contexts)
    feats, lengths = cases.features(), torch.tensor(cases.LENGTHS)
    out = {}
    for context in contexts:
        theirs.set_default_att_context_size(context)
        frames, frame_lengths = theirs(audio_signal=feats.transpose(1, 2), length=lengths)
        out[f"encoder_{context[0]}_{context[1]}"] = frames.transpose(1, 2)
        out["encoder_lengths"] = frame_lengths
        if context[1] == 0:
            continue
        stream, hop = NemoStream(theirs, context), 8 * (context[1] + 1)
        bounds = [0, *range(hop - 7, cases.LENGTHS[1], hop), cases.LENGTHS[1]]
        parts = [stream(feats[1:, a:b], b == bounds[-1]) for a, b in pairwise(bounds)]
        out[f"streamed_{context[0]}_{context[1]}"] = torch.cat(parts, 1)
    return out


class Adapter(nn.Module):
    """The authors' ProjectTransformerCrossAttention: projections around NeMo's decoder, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.text_in = nn.Linear(cases.TEXT_DIM, cases.DIM)
        self.speech_in = nn.Linear(cases.SPEECH_DIM, cases.DIM)
        self.decoder = TransformerDecoder(2, cases.DIM, 4 * cases.DIM, 2, pre_ln=True)
        self.text_out = nn.Linear(cases.DIM, cases.TEXT_DIM)

    def forward(self, text: Tensor, speech: Tensor, cross_mask: Tensor) -> Tensor:
        """text (B, U, D_llm), speech (B, F, D_enc), additive mask (B, 1, U, F)."""
        U = text.shape[1]
        causal = torch.triu(torch.full((U, U), BLOCKED), 1)[None, None]
        x, memory = self.text_in(text), self.speech_in(speech)
        for layer in self.decoder.layers:
            x, _ = layer(x, causal, x, memory, cross_mask)
        return text + self.text_out(self.decoder.final_layer_norm(x))


@torch.inference_mode()
def connector_tensors() -> dict[str, Tensor]:
    adapter = Adapter().eval()
    fill(adapter.named_parameters())
    text = drawn("text", (2, cases.TEXT, cases.TEXT_DIM))
    speech = drawn("speech", (2, cases.SPEECH, cases.SPEECH_DIM))
    frame = torch.arange(cases.SPEECH)
    offline = torch.tensor(cases.SPEECH_LENGTHS)[:, None].expand(-1, cases.TEXT)
    out = {}
    for name, visible in (("offline", offline), ("wait_k", torch.tensor(cases.wait_k_visible()))):
        mask = torch.where(frame < visible[..., None], 0.0, BLOCKED)[:, None]  # (B, 1, U, F)
        out[f"connector_{name}"] = adapter(text, speech, mask)
        out[f"mask_{name}"] = mask[:, 0] == 0.0
    return out


def main() -> None:
    tensors = {**encoder_tensors(), **connector_tensors()}
    np.savez_compressed(OUT, nemo_version=np.array(nemo.__version__), **{k: v.numpy() for k, v in tensors.items()})
    print(f"{OUT}: {len(tensors)} tensors, {OUT.stat().st_size} bytes, NeMo {nemo.__version__}")


if __name__ == "__main__":
    main()
