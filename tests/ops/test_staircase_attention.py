import pytest
import torch

from espnet_bestow.ops import staircase_attention


def inputs(h=4, h_kv=4, dtype=torch.float64):
    torch.manual_seed(0)
    q = torch.randn(2, h, 5, 8, dtype=dtype, requires_grad=True)
    k = torch.randn(2, h_kv, 7, 8, dtype=dtype, requires_grad=True)
    v = torch.randn(2, h_kv, 7, 8, dtype=dtype, requires_grad=True)
    visible = torch.tensor([[0, 1, 3, 7, 7], [2, 0, 5, 6, 0]], dtype=torch.int32)
    return q, k, v, visible


@pytest.mark.parametrize("h_kv", [1, 2, 4])
def test_equals_attention_written_out(h_kv):
    q, k, v, visible = inputs(h_kv=h_kv)
    out = staircase_attention(q, k, v, visible)
    for b in range(2):
        for h in range(4):
            for u in range(5):
                n = int(visible[b, u])
                keys, values = k[b, h * h_kv // 4, :n], v[b, h * h_kv // 4, :n]
                weights = (keys @ q[b, h, u] / 8**0.5).softmax(0)
                torch.testing.assert_close(out[b, h, u], weights @ values if n else torch.zeros(8, dtype=q.dtype))


def test_rows_that_see_nothing_give_exact_zero_and_no_gradient():
    q, k, v, visible = inputs()
    out = staircase_attention(q, k, v, visible)
    assert (out[0, :, 0] == 0).all() and (out[1, :, 1] == 0).all()
    out.sum().backward()
    assert (q.grad[0, :, 0] == 0).all() and (q.grad[1, :, 4] == 0).all()
    assert all(torch.isfinite(t.grad).all() for t in (q, k, v))


def test_frames_beyond_reach_change_nothing():
    q, k, v, visible = inputs()
    far = torch.arange(7) >= visible.max(1).values[:, None]
    far = far[:, None, :, None]
    a = staircase_attention(q, k, v, visible)
    b = staircase_attention(q, k.masked_fill(far, 1e3), v.masked_fill(far, -1e3), visible)
    assert torch.equal(a, b)


def test_gradients_by_finite_differences():
    q, k, v, visible = inputs(h=2, h_kv=1)
    assert torch.autograd.gradcheck(lambda *t: staircase_attention(*t, visible), (q, k, v))


def test_no_frames_at_all():
    q, k, v, visible = inputs()
    out = staircase_attention(q, k[:, :, :0], v[:, :, :0], torch.zeros_like(visible))
    assert out.shape == q.shape and (out == 0).all()


def test_scale_replaces_the_default():
    q, k, v, visible = inputs()
    torch.testing.assert_close(
        staircase_attention(q, k, v, visible, scale=0.5), staircase_attention(q * 0.5 * 8**0.5, k, v, visible)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v, n: (q, k, v, n.long()), "int32"),
        (lambda q, k, v, n: (q, k, v, n[:, :3]), r"visible must be \(B, U\)"),
        (lambda q, k, v, n: (q, k[:, :3], v[:, :3], n), "head groups"),
        (lambda q, k, v, n: (q, k, v[:, :, :3], n), "k and v"),
        (lambda q, k, v, n: (q.float(), k, v, n), "dtypes differ"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        staircase_attention(*change(*inputs()))
