"""The compiled ops against their twin, and what torch's machinery does with them."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.ops import reference, staircase_attention
from tests.ops.instruction_sets import ISAS, ROOT, run_with
from tests.ops.staircase_cases import DTYPES, Case, complaints, random_case

if ops.native is None:
    # Where there is a compiler, `make setup` has built them: their absence is a failure.
    if os.environ.get("BESTOW_OPS") != "reference" and any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.fail("the compiled ops are missing: tools/build_ops.py", pytrace=False)
    pytest.skip("no compiler: the compiled ops were not built", allow_module_level=True)


@pytest.mark.skipif("cuda" not in ops.native.DEVICES or not torch.version.cuda, reason="no CUDA here, or none in torch")
def test_kernels_will_find_the_current_stream():
    """torch's function for it is looked up at run time, which needs no GPU."""
    assert torch.ops.bestow.has_cuda_streams()


def case(dtype=torch.float32, *, h=4, h_kv=2, u=40, f=150, d=64):
    torch.manual_seed(0)
    q, grad = torch.randn(2, h, u, d).to(dtype), torch.randn(2, h, u, d).to(dtype)
    k, v = torch.randn(2, h_kv, f, d).to(dtype), torch.randn(2, h_kv, f, d).to(dtype)
    steps = ((torch.arange(u) - u // 4 + 1).clamp(min=0) * f // u).int()
    return Case(q, k, v, grad, torch.stack([steps, steps.flip(0)]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3, 7, 40, 130])
def test_error_is_at_most_twice_that_of_pytorch(dtype, rows):
    problem = case(dtype, u=rows)
    problem.visible[:, -1] = 150
    exact = problem.solve(reference.staircase_attention, torch.float64)
    usual = problem.solve(reference.staircase_attention)
    for right, plain, ours in zip(exact, usual, problem.solve(staircase_attention), strict=True):
        assert (ours - right).square().mean() <= 4 * (plain - right).square().mean() + 1e-30


def test_random_problems():
    wrong = {seed: found for seed in range(200) if (found := complaints(random_case(seed)))}
    assert not wrong, "\n".join(f"seed {seed}: {found}: {random_case(seed)}" for seed, found in wrong.items())


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    code = """
from tests.ops.staircase_cases import complaints, random_case
wrong = {seed: found for seed in range(200, 260) if (found := complaints(random_case(seed)))}
assert not wrong, wrong
"""
    run_with(isa, code)


def test_an_unknown_instruction_set_is_refused():
    environment = os.environ | {"BESTOW_CPU_ISA": "mmx", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", "import espnet_bestow.ops"], env=environment, capture_output=True)
    assert done.returncode and b"BESTOW_CPU_ISA=mmx" in done.stderr


def test_the_reference_can_be_asked_for():
    code = "import sys; from espnet_bestow import ops; assert ops.native is None"
    code += "; assert 'espnet_bestow.ops._C' not in sys.modules"
    environment = os.environ | {"BESTOW_OPS": "reference", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_a_missing_build_is_said_in_one_line(tmp_path):
    shutil.copytree(
        ROOT / "espnet_bestow", tmp_path / "espnet_bestow", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    code = "import torch; from espnet_bestow import ops; x = torch.ones(1, 1, 1, 8);"
    code += "print(ops.staircase_attention(x, x, x, torch.ones(1, 1, dtype=torch.int32)).sum())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert "8." in done.stdout and len(done.stderr.splitlines()) == 1, done.stderr
    assert "without compiled kernels (No module named 'espnet_bestow.ops._C')" in done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    problem = case(dtype, u=5, f=9, d=16)
    inputs = [x.requires_grad_() for x in (problem.q, problem.k, problem.v)]
    torch.library.opcheck(torch.ops.bestow.staircase_forward.default, (*inputs, problem.visible, 0.2))
    with torch.no_grad():
        out, lse = torch.ops.bestow.staircase_forward(*inputs, problem.visible, 0.2)
        detached = [x.detach() for x in (problem.grad, *inputs)]
        torch.library.opcheck(torch.ops.bestow.staircase_backward.default, (*detached, problem.visible, out, lse, 0.2))


def test_compiles_without_graph_breaks():
    problem = case(u=5, f=9, d=16)
    compiled = torch.compile(staircase_attention, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(problem.solve(compiled), problem.solve(staircase_attention), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(dtype):
    problem = case(u=5, f=9, d=16)
    q = problem.q.requires_grad_()
    with torch.autocast("cpu", dtype):
        out = staircase_attention(q, problem.k, problem.v, problem.visible)
    assert out.dtype == dtype
    low = [x.detach().to(dtype) for x in (problem.q, problem.k, problem.v)]
    assert torch.equal(out, staircase_attention(*low, problem.visible))
    out.sum().backward()
    assert q.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("b", "h", "u", "f", "d"), [(0, 2, 3, 4, 8), (1, 0, 3, 4, 8), (1, 2, 0, 4, 8), (1, 2, 3, 0, 8)]
)
def test_empty_dimensions(b, h, u, f, d):
    q = torch.randn(b, h, u, d, requires_grad=True)
    k, v = torch.randn(b, h, f, d, requires_grad=True), torch.randn(b, h, f, d, requires_grad=True)
    out = staircase_attention(q, k, v, torch.full((b, u), 2, dtype=torch.int32))
    assert out.shape == q.shape and not out.any()
    out.sum().backward()
    assert not q.grad.any() and not k.grad.any() and not v.grad.any()


def test_inputs_may_share_memory_and_rows():
    x = torch.randn(2, 1, 30, 32)
    visible = torch.randint(0, 31, (1, 30), dtype=torch.int32).expand(2, 30)
    q = x.expand(2, 3, 30, 32)
    torch.testing.assert_close(staircase_attention(q, x, x, visible), reference.staircase_attention(q, x, x, visible))


def test_what_is_out_of_sight_is_never_read():
    problem = case(u=8, f=50, d=32)
    visible = torch.full((2, 8), 20, dtype=torch.int32)
    k, v = problem.k.clone(), problem.v.clone()
    k[:, :, 20:], v[:, :, 20:] = float("nan"), float("nan")
    ours = staircase_attention(problem.q, k, v, visible)
    assert torch.equal(ours, staircase_attention(problem.q, problem.k, problem.v, visible))


@pytest.mark.parametrize("frames", [95, 96, 97, 192, 200])
def test_chunks_of_keys_meet_seamlessly(frames):
    """A row may see into any chunk, in any order of rows, and its greatest score may come first or last."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, frames + 1, 16), torch.randn(1, 1, frames, 16), torch.randn(1, 1, frames, 16)
    k *= torch.linspace(0.1, 4, frames)[:, None]
    for keys in (k, k.flip(2)):
        visible = torch.randperm(frames + 1, dtype=torch.int32)[None]
        exact = reference.staircase_attention(q.double(), keys.double(), v.double(), visible)
        torch.testing.assert_close(staircase_attention(q, keys, v, visible).double(), exact, atol=1e-5, rtol=1e-5)


def test_few_rows_see_their_own_lengths():
    """Decoding: streams of a batch are differently long, and what one sees is not read for another."""
    q, k, v = torch.randn(3, 2, 4, 32), torch.randn(3, 1, 50, 32), torch.randn(3, 1, 50, 32)
    visible = torch.tensor([[0, 1, 2, 3], [50, 7, 0, 50], [-5, 9, 60, 8]], dtype=torch.int32)
    out = staircase_attention(q, k, v, visible)
    torch.testing.assert_close(out, reference.staircase_attention(q, k, v, visible))
    for b in range(3):
        for u in range(4):
            alone = staircase_attention(
                q[b : b + 1, :, u : u + 1], k[b : b + 1], v[b : b + 1], visible[b, u].view(1, 1)
            )
            torch.testing.assert_close(out[b, :, u], alone[0, :, 0])


@pytest.mark.parametrize("u", [2, 8, 20])
def test_nan_and_infinity_come_through(u):
    problem = case(u=u, f=20, d=32, h=1, h_kv=1)
    visible = torch.full((2, u), 20, dtype=torch.int32)
    problem.k[0, 0, 3, 5] = float("nan")
    out = staircase_attention(problem.q, problem.k, problem.v, visible)
    assert out[0].isnan().all() and out[1].isfinite().all()


def test_a_second_derivative_is_refused_not_wrong():
    problem = case(u=4, f=8, d=8)
    q = problem.q.requires_grad_()
    out = staircase_attention(q, problem.k, problem.v, problem.visible).sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(out, q, create_graph=True)


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_gpus_that_are_too_old_are_left_to_pytorch(monkeypatch, capability, taken):
    monkeypatch.setattr(ops.native, "DEVICES", ("meta",))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    ops.native._new_enough.cache_clear()
    assert ops.native.takes(torch.empty(1, 1, 1, 64, device="meta")) == taken
    ops.native._new_enough.cache_clear()


def test_a_module_from_before_an_op_was_written_counts_as_none():
    with pytest.raises(ImportError, match=r"_C.* was built before tomorrows_op was written: `make setup`"):
        ops.native._traces_as("tomorrows_op")


@pytest.mark.parametrize(
    "broken",
    [
        lambda q, k, v, n: (q[0], k, v, n),
        lambda q, k, v, n: (q, k, v[:, :, 1:], n),
        lambda q, k, v, n: (q[:, :3], k, v, n),
        lambda q, k, v, n: (q, k[:, :0], v[:, :0], n),
        lambda q, k, v, n: (q, k, v, n.long()),
        lambda q, k, v, n: (q, k, v, n[:, 1:]),
        lambda q, k, v, n: (q.double(), k, v, n),
        lambda q, k, v, n: (q[..., 8:], k, v, n),
        lambda q, k, v, n: (q[:1], k, v, n),
    ],
)
def test_the_op_itself_refuses_what_it_could_not_read(broken):
    problem = case(u=5, f=9, d=16)
    with pytest.raises(RuntimeError, match="staircase"):
        torch.ops.bestow.staircase_forward(*broken(problem.q, problem.k, problem.v, problem.visible), 0.2)
