"""A graphed step gives what an ordinary one gives; without a GPU, its static buffers alone are tested."""

import copy

import pytest
import torch

from espnet_bestow.connectors import CrossAttentionConnector
from espnet_bestow.connectors.graphed import GraphedStep
from espnet_bestow.seats import Seats

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
WIDTH, SPEECH = 12, 6


class Sessions:
    """A connector with seats, stepped by ``step(text, visible, at)``."""

    def __init__(self, connector, graphed):
        self.connector, self.state, self.seats = connector, connector.seated(), Seats()
        self.graphed = GraphedStep(connector, self.state) if graphed else None

    def step(self, seats, text, visible):
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        at = self.seats.place(seats, mask)
        if self.graphed is not None and text.shape[1] == 1:
            out = self.graphed(text, visible, at).clone()
        else:
            self.state.sit(at)
            out = self.connector(text, mask, visible, self.state).embeddings
        for seat in seats:
            self.seats.advance(seat, text.shape[1])
        return out


def two(device, **options):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    torch.manual_seed(0)
    connector = CrossAttentionConnector(WIDTH, SPEECH, dim=16, num_heads=4, **options).to(device).eval()
    return Sessions(connector, False), Sessions(copy.deepcopy(connector), True)


@torch.inference_mode()
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("self_attention", [True, False], ids=["blocks", "cross-attention only"])
def test_steps_equal_ordinary_ones_while_texts_and_speech_grow(device, self_attention):
    both = two(device, self_attention=self_attention)
    frames = torch.randn(2, 40, SPEECH, device=device)
    seats = 0, 1
    assert all((sessions.seats.take(), sessions.seats.take()) == seats for sessions in both)
    prompt = torch.randn(2, 3, WIDTH, device=device)
    nothing = torch.zeros(2, 3, dtype=torch.int32, device=device)
    torch.testing.assert_close(*(sessions.step(seats, prompt, nothing) for sessions in both))
    for n in range(20):  # buffers grow several times on the way
        heard = (2 * n, n)
        for sessions in both:
            for seat in seats:
                sessions.state.hear(seat, frames[seat, : heard[seat]])
        text = torch.randn(2, 1, WIDTH, device=device)
        visible = torch.tensor([[heard[0]], [heard[1]]], dtype=torch.int32, device=device)
        ordinary, graphed = (sessions.step(seats, text, visible) for sessions in both)
        torch.testing.assert_close(graphed, ordinary, rtol=1e-5, atol=1e-5)
    recordings = both[1].graphed._recorded
    assert list(recordings) == [2] and recordings[2].memory == both[1].state.reserve(recordings[2].at)


@torch.inference_mode()
def test_one_recording_serves_as_long_as_buffers_stay():
    _, sessions = two("cpu")
    seat = sessions.seats.take()
    sessions.state.hear(seat, torch.randn(8, SPEECH))
    sessions.step([seat], torch.randn(1, 9, WIDTH), torch.zeros(1, 9, dtype=torch.int32))
    recorded = []
    for _ in range(8):  # 9 slots become 18 with the first of these
        sessions.step([seat], torch.randn(1, 1, WIDTH), torch.full((1, 1), 8, dtype=torch.int32))
        recorded.append(sessions.graphed._recorded[1])
    assert all(step is recorded[0] for step in recorded)


@torch.inference_mode()
def test_other_seats_and_longer_steps_are_refused():
    _, sessions = two("cpu")
    sessions.seats.take()
    seat = sessions.seats.take()
    with pytest.raises(ValueError, match=r"seats=\(1,\)"):
        sessions.step([seat], torch.randn(1, 1, WIDTH), torch.zeros(1, 1, dtype=torch.int32))
