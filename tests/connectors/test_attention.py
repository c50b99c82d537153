"""The parts of a BESTOW block, against loops written out."""

import pytest
import torch

from espnet_bestow.connectors.attention import CausalSelfAttention, CrossAttention, KeysValues
from espnet_bestow.visibility import causal_mask


def test_causal_mask_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, True]])
    # Rows are positions 1 and 2; the padding position 1 of the second text sees itself, nobody sees it.
    assert causal_mask(mask, new=2).int().tolist() == [[[1, 1, 0], [1, 1, 1]], [[1, 1, 0], [1, 0, 1]]]


def test_causal_mask_of_new_positions_is_the_end_of_the_full_one():
    mask = torch.rand(3, 7) > 0.3
    assert torch.equal(causal_mask(mask, new=7)[:, 4:], causal_mask(mask, new=3))


def test_keys_values_grow_and_are_selected():
    old, new = torch.randn(2, 1, 3, 4), torch.randn(2, 1, 1, 4)
    grown = KeysValues(old, -old).extend(new, -new)
    assert torch.equal(grown.keys, torch.cat([old, new], 2)) and torch.equal(grown.values, -grown.keys)
    beams = grown.select(torch.tensor([1, 1, 0]))
    assert torch.equal(beams.keys, grown.keys[[1, 1, 0]]) and torch.equal(beams.values, grown.values[[1, 1, 0]])


@pytest.mark.parametrize("attention", [CausalSelfAttention, CrossAttention])
def test_heads_must_divide_the_width(attention):
    with pytest.raises(ValueError, match=r"dim=10 is not a multiple of num_heads=4"):
        attention(10, 4)


def attend(attention, query, keys, values):
    """One query (D,) over keys and values (H, N, d), head by head."""
    heads = attention.num_heads
    q = attention.query(query).unflatten(0, (heads, -1))
    read = [(keys[h] @ q[h] / q.shape[-1] ** 0.5).softmax(0) @ values[h] for h in range(heads)]
    return attention.out(torch.cat(read))


@torch.no_grad()
def test_self_attention_written_out_in_two_calls():
    torch.manual_seed(0)
    attention = CausalSelfAttention(8, 2)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True, False, True, True, True]])
    past = KeysValues(torch.zeros(2, 2, 0, 4), torch.zeros(2, 2, 0, 4))
    first, past = attention(x[:, :3], past, causal_mask(mask[:, :3], 3))
    second, past = attention(x[:, 3:], past, causal_mask(mask, 2))
    out = torch.cat([first, second], 1)
    everything = attention.keys_values(x)
    for b in range(2):
        for u in range(5):
            if mask[b, u]:
                seen = [n for n in range(u + 1) if mask[b, n]]
                expected = attend(attention, x[b, u], everything.keys[b][:, seen], everything.values[b][:, seen])
                torch.testing.assert_close(out[b, u], expected)
    assert torch.isfinite(out).all() and past.keys.shape == (2, 2, 5, 4)


@torch.no_grad()
def test_rows_share_an_utterance_and_still_see_different_amounts_of_it():
    """Three texts per recording, folded into one attention; every row has its own staircase."""
    torch.manual_seed(0)
    attention = CrossAttention(8, 2, memory_dim=5)
    speech = attention.keys_values(torch.randn(2, 7, 5))
    x = torch.randn(6, 4, 8)
    visible = torch.randint(0, 8, (6, 4), dtype=torch.int32)
    visible[2] = torch.tensor([0, 1, 4, 7])
    out = attention(x, speech, visible)
    for row in range(6):
        for u in range(4):
            n = int(visible[row, u])
            keys, values = speech.keys[row // 3][:, :n], speech.values[row // 3][:, :n]
            expected = attend(attention, x[row, u], keys, values) if n else attention.out.bias
            torch.testing.assert_close(out[row, u], expected)
