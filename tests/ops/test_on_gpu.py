"""The kernels where they are meant to run; elsewhere their source is emulated (test_cuda_emulation.py)."""

import pytest
import torch

from espnet_bestow.ops import native, reference, staircase_attention, staircase_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(native is None or "cuda" not in native.DEVICES, reason="the kernels are not built for CUDA"),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = {  # B, H, H_kv, U, F, D
    "one token": (3, 4, 4, 1, 333, 64),
    "a few tokens, grouped heads": (2, 8, 2, 5, 100, 128),
    "a short text": (2, 4, 4, 70, 150, 128),
    "a long text": (2, 2, 2, 300, 500, 64),
    "a long text, grouped heads": (1, 4, 2, 200, 130, 96),
    "wide heads": (1, 2, 2, 40, 90, 256),
    "heads of odd width": (1, 2, 2, 20, 77, 40),
}


def problem(shape, dtype):
    batch, heads, kv_heads, queries, keys, width = shape
    torch.manual_seed(0)
    q = torch.randn(batch, heads, queries, width, device="cuda", dtype=dtype)
    k, v = torch.randn(2, batch, kv_heads, keys, width, device="cuda", dtype=dtype)
    visible = torch.randint(0, keys + 1, (batch, queries), device="cuda", dtype=torch.int32)
    visible[0, 0] = keys if queries == 1 else 0
    return q, k, v, visible


def results(attention, q, k, v, visible, dtype):
    """Output and gradients."""
    inputs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, visible)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(q.dtype).to("cuda", dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_as_exact_as_torch(shape, dtype):
    given = problem(shape, dtype)
    exact = results(reference.staircase_attention, *given, torch.float64)
    ours, theirs = (results(of, *given, dtype) for of in (staircase_attention, reference.staircase_attention))
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        floor = torch.finfo(dtype).eps * right.abs().max()
        assert (mine.double() - right).abs().max() <= 2 * (other.double() - right).abs().max() + floor
    blind = (given[-1] == 0)[:, None, :, None].expand_as(ours[0])
    assert not ours[0][blind].any() and not ours[1][blind].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_same_bits_every_time(dtype):
    given = problem(SHAPES["a long text"], dtype)
    first, second = (results(staircase_attention, *given, dtype) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights(dtype):
    q, k, _, visible = problem(SHAPES["one token"], dtype)
    with torch.inference_mode():
        ours = staircase_weights(q, k, visible)
    right = reference.staircase_weights(q.double(), k.double(), visible)
    torch.testing.assert_close(ours.double(), right, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_opcheck():
    q, k, v, visible = problem(SHAPES["a short text"], torch.float32)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(torch.ops.bestow.staircase_forward.default, (*inputs, visible, 0.2))


def test_compiles_in_one_piece():
    q, k, v, visible = problem(SHAPES["a short text"], torch.bfloat16)
    compiled = torch.compile(staircase_attention, fullgraph=True, backend="aot_eager")
    whole, eager = (results(of, q, k, v, visible, torch.bfloat16) for of in (compiled, staircase_attention))
    assert all(map(torch.equal, whole, eager))


def test_autocast():
    q, k, v, visible = problem(SHAPES["a short text"], torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        out = staircase_attention(q, k, v, visible)
    half = [x.bfloat16() for x in (q, k, v)]
    assert out.dtype == torch.bfloat16 and torch.equal(out, staircase_attention(*half, visible))


@torch.inference_mode()
def test_a_recorded_step_follows_lengths():
    q, k, v, visible = problem(SHAPES["one token"], torch.bfloat16)
    staircase_attention(q, k, v, visible)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = staircase_attention(q, k, v, visible)
    for length in (333, 1, 40):
        visible.fill_(length)
        graph.replay()
        assert torch.equal(out, staircase_attention(q, k, v, visible))


@torch.inference_mode()
@pytest.mark.parametrize("shape", ["one token", "a few tokens, grouped heads"])
def test_a_kernel_waits_for_what_its_predecessor_writes(shape):
    """Decoding kernels begin early: each query here is the last one's output, whose memory the one after takes."""
    q, k, v, visible = problem(SHAPES[shape], torch.float32)

    def chain(attention):
        out = q
        for _ in range(200):
            out = attention(out, k, v, visible)
        return out

    expected = chain(reference.staircase_attention)
    staircase_attention(q, k, v, visible)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = chain(staircase_attention)
    graph.replay()
    for ours in (chain(staircase_attention), recorded):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_a_stream_of_ones_own():
    """Kernels go to the stream that is current, after what is there already."""
    given = problem(SHAPES["a long text"], torch.float32)
    expected = staircase_attention(*given)
    q = torch.zeros_like(given[0])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(20_000_000)
        q.copy_(given[0])
        out = staircase_attention(q, *given[1:])
        torch.cuda.current_stream().synchronize()
    assert torch.equal(out, expected)
