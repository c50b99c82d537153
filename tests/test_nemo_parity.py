"""Parity with NVIDIA NeMo 3.0 on tensors that benchmarks/nemo/make_golden.py wrote with it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_bestow.connectors import Speech
from espnet_bestow.connectors.cross_attention import CrossAttentionConnector
from espnet_bestow.encoders import StreamingFastConformerEncoder
from espnet_bestow.visibility import WaitKPolicy, offline
from tests.golden import cases
from tests.golden.names import nemo_connector_name
from tests.golden.weights import drawn, fill


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    with np.load(Path(__file__).parent / "golden" / "nemo.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name != "nemo_version"}


@pytest.fixture(scope="module")
def encoder() -> StreamingFastConformerEncoder:
    ours = StreamingFastConformerEncoder(
        cases.BINS, cases.WIDTH, cases.BLOCKS, cases.HEADS, cases.INNER, cases.CHANNELS, contexts=cases.CONTEXTS
    )
    ours.encoder.load_state_dict(cases.encoder().state_dict())
    return ours.eval()


@torch.no_grad()
@pytest.mark.parametrize("context", cases.CONTEXTS)
def test_encoder(golden, encoder, context):
    encoder.context = context
    frames, lengths, _ = encoder(cases.features(), torch.tensor(cases.LENGTHS))
    assert lengths.tolist() == golden["encoder_lengths"].tolist()
    for row, length in enumerate(lengths):
        expected = golden[f"encoder_{context[0]}_{context[1]}"][row, :length]
        torch.testing.assert_close(frames[row, :length], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("context", cases.CONTEXTS)
def test_streamed_encoder(golden, encoder, context):
    """NeMo's stream where it is exact, and NeMo's full pass where it is not (no look-ahead)."""
    step = encoder.chunk_step(context)
    feats, end = cases.features()[1:, : cases.LENGTHS[1]], cases.LENGTHS[1]
    states, parts = [step.open()], []
    for start in range(0, step.frames_of(end), step.chunk):
        first, last = step.features(start)
        frames, states = step(feats[:, max(first, 0) : last], states, [end if last > end else None])
        parts.append(frames)
    got = torch.cat(parts, 1)[0, : step.frames_of(end)]
    name = f"{context[0]}_{context[1]}"
    expected = golden[f"streamed_{name}"][0] if context[1] else golden[f"encoder_{name}"][1, : len(got)]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_wait_k_mask(golden):
    lengths = torch.tensor(cases.SPEECH_LENGTHS)
    mask = torch.ones(2, cases.TEXT, dtype=torch.bool)
    index = torch.arange(cases.TEXT).expand(2, -1)
    frame = torch.arange(cases.SPEECH)
    rule = WaitKPolicy(k=cases.WAIT_K, step=cases.STEP).rule(2)
    for name, visible in (("wait_k", rule(index, mask, lengths)), ("offline", offline(index, mask, lengths))):
        assert torch.equal(frame < visible[..., None], golden[f"mask_{name}"])


@torch.no_grad()
@pytest.mark.parametrize("mode", ["offline", "wait_k"])
def test_connector(golden, mode):
    connector = CrossAttentionConnector(
        cases.TEXT_DIM, cases.SPEECH_DIM, dim=cases.DIM, num_blocks=2, num_heads=2, dropout=0.0
    ).eval()
    fill((nemo_connector_name(name), parameter) for name, parameter in connector.named_parameters())
    text = drawn("text", (2, cases.TEXT, cases.TEXT_DIM))
    speech = Speech(drawn("speech", (2, cases.SPEECH, cases.SPEECH_DIM)), torch.tensor(cases.SPEECH_LENGTHS))
    visible = golden[f"mask_{mode}"].sum(-1).int()
    out = connector(text, torch.ones(2, cases.TEXT, dtype=torch.bool), visible, connector.start(speech))
    torch.testing.assert_close(out.embeddings, golden[f"connector_{mode}"], rtol=0, atol=1e-5)
