"""The real positions of a batch in one line: there and back, with gradients, and attention in rows."""

import pytest
import torch
import torch.nn.functional as F

from espnet_bestow import ops
from espnet_bestow.line import Line
from espnet_bestow.visibility import causal_mask

MASK = torch.tensor(
    [
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 0, 1, 1],  # padding may stand anywhere
        [0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0],
    ],
    dtype=torch.bool,
)


def test_positions_keep_their_order_and_their_numbers():
    line = Line(MASK)
    x = torch.arange(24.0).view(4, 6)
    assert line.lay(x).tolist() == [[0, 1, 2, 7, 8, 10, 11, 18, 19, 20, 21, 22]]
    assert line.numbers.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]]
    assert torch.equal(line.batch(line.lay(x)), torch.where(MASK, x, 0))
    assert line.mask.sum(1).tolist() == [3, 4, 0, 5]
    assert line.in_rows(x).tolist() == [[0, 1, 2, 0, 0], [7, 8, 10, 11, 0], [0] * 5, [18, 19, 20, 21, 22]]
    assert not line.full
    assert Line(torch.ones(2, 3, dtype=torch.bool)).full


def test_rows_and_heads_are_each_others_inverse():
    line = Line(MASK)
    heads = torch.randn(1, 2, 12, 3)
    rows = line.rows(heads)
    assert rows.shape == (4, 2, 5, 3)
    assert torch.equal(line.heads(rows), heads)
    assert torch.equal(rows[1, :, :4], heads[0, :, 3:7])
    assert not rows[2].any()
    assert not rows[0, :, 3:].any()


def test_gradients_travel_the_same_way():
    line = Line(MASK[:2, :4])
    batch = torch.randn(2, 4, 1, dtype=torch.double, requires_grad=True)
    heads = torch.randn(1, 2, 5, 1, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(line.lay, batch)
    assert torch.autograd.gradcheck(line.rows, heads)
    assert torch.autograd.gradcheck(lambda x: line.batch(line.lay(x)), batch)
    assert torch.autograd.gradcheck(lambda x: line.heads(line.rows(x) * 2), heads)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_attention_is_that_of_each_row_by_itself(kv_heads, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(ops, "native", None)
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, heads, 6, 8) for heads in (2, kv_heads, kv_heads))
    allowed = causal_mask(MASK, 6)[:, None]
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=0.3, enable_gqa=kv_heads == 1)
    line = Line(MASK)

    def lined(heads):
        return line.lay(heads.transpose(1, 2)).transpose(1, 2)

    found = line.attend(lined(q), line.rows(lined(k)), line.rows(lined(v)), 0.3)
    torch.testing.assert_close(found, lined(expected))
