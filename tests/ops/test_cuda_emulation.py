"""The CUDA kernels' own source on the CPU, against the PyTorch twin in float64."""

import pytest
import torch

from espnet_bestow.ops import reference
from tests.ops.emulated import Emulated, build

HALVES = [torch.bfloat16, torch.float16]
ALL = [torch.float32, *HALVES]


@pytest.fixture(scope="module")
def kernels():
    module = build()
    if module is None:
        pytest.skip("no g++ to build the emulation with")
    return Emulated(module)


def inputs(dtype, heads=2, kv_heads=2, queries=5, keys=37, width=32, batch=1):
    """Inputs whose keys beyond a stream's visible ones are NaN, so that reading one would show."""
    torch.manual_seed(queries * keys + width)
    q = torch.randn(batch, heads, queries, width).to(dtype)
    k, v = (torch.randn(batch, kv_heads, keys, width).to(dtype) for _ in range(2))
    visible = torch.randint(0, keys + 1, (batch, queries), dtype=torch.int32)
    if queries:
        visible[:, queries // 2] = 0
    for b in range(batch):
        bound = int(visible[b].max()) if queries else 0
        k[b, :, bound:] = v[b, :, bound:] = torch.nan
    return q, k, v, visible


def twin(q, k, v, visible, dtype=torch.float64):
    q, k, v = (x.nan_to_num().to(dtype).requires_grad_() for x in (q, k, v))
    out = reference.staircase_attention(q, k, v, visible, scale=0.3)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
    grads = torch.autograd.grad(out, (q, k, v), grad) if out.requires_grad else (q, k, v)
    return out.detach(), grad, grads


def assert_as_good_as_torch(ours, theirs, exact, what):
    """The project's rule: an error at most twice that of plain PyTorch at the same precision.

    Of a few sums PyTorch's may come out nearly exact, on one CPU and not on another. Four roundings of the largest
    number are always allowed: the kernels compute weights again from scores and the logarithm of their sum.
    """
    floor = 4 * torch.finfo(ours.dtype).eps * exact.abs().max()
    allowed = 2 * (theirs.double() - exact).abs().max() + floor
    error = (ours.double() - exact).abs().max()
    assert error <= allowed, f"{what}: error {error:.2e}, allowed {allowed:.2e}"  # NaN fails too


SHAPES = {
    "one row, one key": {"queries": 1, "keys": 1},
    "odd sizes": {"queries": 19, "keys": 71, "width": 40},
    "keys of several tiles": {"queries": 3, "keys": 150, "heads": 1, "kv_heads": 1},
    "many rows and keys": {"queries": 128, "keys": 200, "batch": 2, "heads": 1, "kv_heads": 1},
    "several blocks of rows": {"queries": 131, "keys": 9, "heads": 1, "kv_heads": 1, "width": 8},
    "grouped heads": {"heads": 6, "kv_heads": 2, "keys": 20},
    "streams of different lengths": {"batch": 3, "heads": 1, "kv_heads": 1},
    "heads of 128": {"width": 128, "heads": 1, "kv_heads": 1, "keys": 70},
    "heads of 256": {"width": 256, "heads": 1, "kv_heads": 1, "keys": 35, "queries": 2},
}


@pytest.fixture(params=[0, 163 << 10], ids=["small GPU", "large GPU"])
def any_gpu(kernels, request):
    """Shared memory decides whether the gradients of few rows come from one kernel or from two."""
    kernels.module.limit_shared(request.param)
    yield kernels
    kernels.module.limit_shared(0)


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_forward_and_backward(any_gpu, shape, dtype):
    kernels = any_gpu
    q, k, v, visible = inputs(dtype, **shape)
    exact, grad, exact_grads = twin(q, k, v, visible)
    theirs, _, their_grads = twin(q, k, v, visible, dtype)
    out, lse = kernels.forward(q, k, v, visible, 0.3)
    assert_as_good_as_torch(out, theirs, exact, "out")
    assert out[visible[:, None].expand(out.shape[:3]) == 0].count_nonzero() == 0
    assert torch.equal(lse.isneginf(), visible[:, None].expand(lse.shape) == 0)
    grads = kernels.backward(grad.to(dtype), q, k, v, visible, out, lse, 0.3)
    for name, ours, other, right in zip("qkv", grads, their_grads, exact_grads, strict=True):
        assert_as_good_as_torch(ours, other, right, f"gradient of {name}")
    bound = [int(row.max()) for row in visible]
    assert all(grads[1][b, :, n:].count_nonzero() == 0 for b, n in enumerate(bound))


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize(("splits", "clusters"), [(1, False), (2, False), (5, False), (1, True), (4, True), (8, True)])
@pytest.mark.parametrize(
    "shape",
    [
        {"queries": 1, "keys": 90, "heads": 1, "kv_heads": 1},
        {"queries": 8, "keys": 75, "heads": 6, "kv_heads": 2, "width": 24},  # 24 rows per group: two row tiles
        {"queries": 2, "keys": 70, "batch": 3, "heads": 2, "kv_heads": 1, "width": 8},
        {"queries": 3, "keys": 40, "heads": 1, "kv_heads": 1, "width": 200},
    ],
    ids=["one query", "more rows than a tile", "ragged streams", "wide heads"],
)
def test_decode(kernels, shape, splits, clusters, dtype):
    q, k, v, visible = inputs(dtype, **shape)
    if shape["queries"] == 1:
        visible.fill_(k.shape[2])
        k, v = k.nan_to_num(0.5), v.nan_to_num(0.25)
    exact, _, _ = twin(q, k, v, visible)
    theirs, _, _ = twin(q, k, v, visible, dtype)
    out, lse = kernels.decode(q, k, v, visible, 0.3, splits, clusters)
    assert_as_good_as_torch(out, theirs, exact, "out")
    _, forward_lse = kernels.forward(q, k, v, visible, 0.3)
    torch.testing.assert_close(lse, forward_lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("clusters", [False, True])
@pytest.mark.parametrize("part", "qk")
def test_nan_comes_through(kernels, part, clusters):
    tensors = dict(zip("qkv", inputs(torch.float32, queries=2, keys=40, heads=1, kv_heads=1, batch=2)[:3], strict=True))
    tensors = {name: x.nan_to_num(0.5) for name, x in tensors.items()}
    tensors[part][0, :, 0, 3] = torch.nan
    visible = torch.full((2, 2), 40, dtype=torch.int32)
    broken = slice(0, 1) if part == "q" else slice(None)  # the row of that query, or all that see that key
    for out, lse in (
        kernels.forward(*tensors.values(), visible, 0.3),
        kernels.decode(*tensors.values(), visible, 0.3, 2, clusters),
    ):
        assert out[0, 0, broken].isnan().all() and lse[0, 0, broken].isnan().all()
        assert out[1].isfinite().all() and lse[1].isfinite().all()


@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_weights(kernels, shape, dtype):
    q, k, _, visible = inputs(dtype, **shape)
    exact, theirs = (
        reference.staircase_weights(q.to(dtype), k.nan_to_num().to(dtype), visible, 0.3)
        for dtype in (torch.float64, q.dtype)
    )
    ours = kernels.weights(q, k, visible, 0.3)
    assert_as_good_as_torch(ours, theirs, exact, "weights")
    unseen = torch.arange(k.shape[2]) >= visible[:, None, :, None]
    assert not ours.masked_select(unseen.expand_as(ours)).any()


@pytest.mark.parametrize("dtype", ALL, ids=str)
def test_rows_that_see_nothing(any_gpu, dtype):
    kernels = any_gpu
    q, k, v, visible = inputs(dtype, batch=2)
    visible.zero_()
    k.fill_(torch.nan), v.fill_(torch.nan)
    out, lse = kernels.forward(q, k, v, visible, 1.0)
    results = [out, kernels.decode(q, k, v, visible, 1.0, 2)[0]]
    results += kernels.backward(torch.ones_like(q), q, k, v, visible, out, lse, 1.0)
    results += [kernels.weights(q, k, visible, 1.0)]
    assert all(torch.equal(x, torch.zeros_like(x)) for x in results)


def test_visible_out_of_range_reads_nothing_beyond(kernels):
    q, k, v, _visible = inputs(torch.bfloat16, queries=3, keys=20, heads=1, kv_heads=1)
    k, v = k.nan_to_num(0.1), v.nan_to_num(0.1)
    room = torch.full((2, 1, 1, 40, 32), torch.nan, dtype=torch.bfloat16)
    room[:, :, :, 10:30] = torch.stack([k, v])
    wild = torch.tensor([[-7, 2**30, 20]], dtype=torch.int32)
    tame = torch.tensor([[0, 20, 20]], dtype=torch.int32)
    inside = room[:, :, :, 10:30]
    out, _ = kernels.forward(q, inside[0], inside[1], wild, 0.3)
    expected, _ = kernels.forward(q, k, v, tame, 0.3)
    assert torch.equal(out, expected)
    assert torch.equal(kernels.decode(q, *inside, wild, 0.3, 2)[0], kernels.decode(q, k, v, tame, 0.3, 2)[0])


def test_strides(any_gpu):
    """Projections arrive as (B, U, H, D) seen through a transpose."""
    kernels = any_gpu
    q, k, v, visible = inputs(torch.bfloat16)
    out, lse = kernels.forward(q, k, v, visible, 0.3)
    odd = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not odd[0].is_contiguous()
    assert torch.equal(kernels.forward(*odd, visible, 0.3)[0], out)
    assert torch.equal(kernels.decode(*odd, visible, 0.3, 2)[0], kernels.decode(q, k, v, visible, 0.3, 2)[0])
    grads = [kernels.backward(torch.ones_like(x[0]), *x, visible, out, lse, 0.3) for x in ((q, k, v), odd)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("sizes", [{"queries": 0}, {"keys": 0}, {"batch": 0}], ids=str)
def test_nothing_to_do(any_gpu, sizes):
    kernels = any_gpu
    q, k, v, visible = inputs(torch.float32, **sizes)
    out, lse = kernels.forward(q, k, v, visible, 1.0)
    grads = kernels.backward(torch.ones_like(q), q, k, v, visible, out, lse, 1.0)
    for x in (out, kernels.decode(q, k, v, visible, 1.0, 1)[0], kernels.weights(q, k, visible, 1.0), *grads):
        assert torch.equal(x, torch.zeros_like(x))


def test_refuses_what_it_cannot_do(kernels):
    q, k, v, visible = inputs(torch.bfloat16, width=32)
    with pytest.raises(RuntimeError, match="status -1"):
        kernels.forward(*(x[..., :20] for x in (q, k, v)), visible, 1.0)
    with pytest.raises(RuntimeError, match="status -2"):
        kernels.forward(q[:, :1].expand(-1, 3, -1, -1), k, v, visible, 1.0)
    with pytest.raises(RuntimeError, match="status -3"):
        kernels.forward(*(x[..., 1:25] for x in (q, k, v)), visible, 1.0)
    q, k, v, visible = inputs(torch.bfloat16, queries=9)
    with pytest.raises(RuntimeError, match="status -4"):
        kernels.decode(q, k, v, visible, 1.0, 1)
    q, k, v, visible = inputs(torch.bfloat16)
    for splits in (0, 3, 16):
        with pytest.raises(RuntimeError, match="status -4"):
            kernels.decode(q, k, v, visible, 1.0, splits, clusters=True)


def test_splits_fill_the_gpu_but_stay_worth_their_merge(kernels):
    attention = kernels.module.Attention()
    attention.batch, attention.heads, attention.kv_heads, attention.queries = 1, 16, 16, 1
    attention.keys = 750
    splits = kernels.module.decode_splits
    assert splits(attention, 132, False) == 12  # 47 tiles of 16 keys, at least 4 each
    assert splits(attention, 132, True) == 8
    attention.batch = 5
    assert splits(attention, 132, False) == 3  # 240 blocks, two of which a multiprocessor takes
    assert splits(attention, 132, True) == 2
    attention.batch = 64
    assert splits(attention, 132, False) == splits(attention, 132, True) == 1
    attention.keys = 0
    assert splits(attention, 132, False) == splits(attention, 132, True) == 1
