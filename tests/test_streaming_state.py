"""Sessions in seats: the streaming state gives the numbers of the offline one, whoever else sits there."""

import pytest
import torch
from torch import nn

from espnet_bestow.connectors.attention import CrossAttention
from espnet_bestow.connectors.seated import AbsorbedSpeech, SeatedFrames
from espnet_bestow.ops import staircase_weights
from espnet_bestow.seats import Placement, Seats
from tests.llm_fixtures import write_llm
from tests.test_model import RULES, STAIRCASE, batch, build, teacher_forced


@pytest.fixture(scope="session")
def llm_paths(tmp_path_factory):
    return {family: write_llm(tmp_path_factory.mktemp(family), family) for family in ("llama", "qwen2", "gpt2")}


def consume(model, state, seats, ids, visible):
    """Rows of unequal length, padded on the left, so that the last column is real; returns their last logits."""
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(r)) + r for r in ids])
    mask = torch.tensor([[False] * (width - len(r)) + [True] * len(r) for r in ids])
    seen = torch.tensor([[0] * (width - len(r)) + r for r in visible], dtype=torch.int32)
    state.sit(seats, mask)
    logits = model.think(model.read(padded, mask, seen, state), state, keep=1)[:, -1]
    for seat, row in zip(seats, ids, strict=True):
        state.seats.advance(seat, len(row))
    return logits.log_softmax(-1)


@torch.no_grad()
@pytest.mark.parametrize("configuration", STAIRCASE)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_seats_at_different_positions_equal_the_full_pass(llm_paths, family, configuration):
    model = build(llm_paths[family], configuration)
    speech, prompts, answers = batch()
    full = teacher_forced(model, speech, prompts, answers, RULES["wait-k"])
    state = model.seated()
    empty, first, second = (state.seats.take() for _ in range(3))
    assert (empty, first, second) == (0, 1, 2)
    state.connector.hear(first, speech.frames[0, :4])
    state.connector.hear(second, speech.frames[1, :4])
    ids = {first: [*prompts[0], *answers[0]], second: [*prompts[1], *answers[1]]}

    def visible(row, n):  # wait-k of RULES: K = 2, L = 2
        return min((n + 2) * 2, int(speech.lengths[row]))

    both = consume(model, state, [second, first], [prompts[1], prompts[0]], [[0, 4], [0, 0, 0, 4]])
    torch.testing.assert_close(both[1], full[0, 3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[0], full[1, 1], rtol=1e-4, atol=1e-4)
    # One of them runs ahead of the other, with more and more frames.
    for n in (1, 2, 3):
        state.connector.hear(first, speech.frames[0, : visible(0, n)])
        alone = consume(model, state, [first], [[answers[0][n - 1]]], [[visible(0, n)]])
        torch.testing.assert_close(alone[0], full[0, 3 + n], rtol=1e-4, atol=1e-4)
    state.connector.hear(second, speech.frames[1, : visible(1, 1)])
    alone = consume(model, state, [second], [[answers[1][0]]], [[visible(1, 1)]])
    torch.testing.assert_close(alone[0], full[1, 2], rtol=1e-4, atol=1e-4)
    state.connector.hear(second, speech.frames[1, : visible(1, 2)])
    state.connector.hear(first, speech.frames[0, : visible(0, 4)])
    last = consume(
        model, state, [first, second], [ids[first][-1:], [answers[1][1]]], [[visible(0, 4)], [visible(1, 2)]]
    )
    torch.testing.assert_close(last[0], full[0, 7], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last[1], full[1, 3], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("configuration", ["two blocks", "recurrent", "per layer"])
def test_taking_tokens_back_is_never_having_read_them(llm_paths, configuration):
    model = build(llm_paths["llama"], configuration)
    speech, prompts, _ = batch()
    expected, found = [], []
    for detour, out in (([], expected), ([20, 21, 22], found)):
        state = model.seated()
        seat = state.seats.take()
        state.connector.hear(seat, speech.frames[0])
        consume(model, state, [seat], [prompts[0]], [[11] * 4])
        for token in detour:
            consume(model, state, [seat], [[token]], [[11]])
        state.seats.advance(seat, -len(detour))
        out += [consume(model, state, [seat], [[token]], [[9]]) for token in (7, 8)]
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@torch.no_grad()
def test_absorbed_cross_attention_equals_the_projected_one():
    torch.manual_seed(0)
    attention, bridge, into = CrossAttention(16, 4), nn.Linear(6, 10), nn.Linear(10, 16)
    for linear in (attention.key, attention.value, bridge, into):
        nn.init.normal_(linear.bias)
    frames, q = torch.randn(2, 9, 6), torch.randn(2, 4, 3, 4)
    visible = torch.tensor([[0, 4, 9], [1, 0, 7]], dtype=torch.int32)
    projected = attention.keys_values(into(bridge(frames)))
    seated = SeatedFrames(6)
    for seat in (0, 1):
        seated.put(seat, frames[seat])
    seated.sit(Placement((0, 1), torch.tensor([0, 1]), torch.zeros(2, 3, dtype=torch.long), 3))
    absorbed = AbsorbedSpeech(attention, [bridge, into], seated)
    torch.testing.assert_close(absorbed.attend(q, visible), projected.attend(q, visible), rtol=1e-5, atol=1e-5)
    assert absorbed.attend(q, visible)[0, :, 0].abs().max() == 0.0
    weights = staircase_weights(q, projected.keys, visible)[:, :, -1].mean(1)
    torch.testing.assert_close(absorbed.weights(), weights, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


def test_seats_are_reused_lowest_first_and_forgotten():
    seats = Seats()
    assert [seats.take() for _ in range(3)] == [0, 1, 2]
    seats.leave(1)
    seats.leave(0)
    assert seats.take() == 0
    for seat in (0, 2):
        seats.leave(seat)
    assert seats.lengths == {} and seats.take() == 0
