"""The weights of a few query rows: kernel against twin, and against the attention they belong to."""

import pytest
import torch

from espnet_bestow.ops import native, staircase_attention, staircase_weights
from tests.ops.instruction_sets import ISAS, run_with
from tests.ops.staircase_cases import DTYPES, few_rows, weights_complaints

needs_kernel = pytest.mark.skipif(native is None, reason="the compiled ops were not built")


def test_random_problems():
    wrong = {seed: found for seed in range(150) if (found := weights_complaints(few_rows(seed)))}
    assert not wrong


@needs_kernel
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa):
    code = """
from tests.ops.staircase_cases import few_rows, weights_complaints
wrong = {seed: found for seed in range(150, 200) if (found := weights_complaints(few_rows(seed)))}
assert not wrong, wrong
"""
    run_with(isa, code)


@needs_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_takes_few_rows_without_gradient(dtype):
    q, k = torch.randn(2, 4, 4, 16).to(dtype), torch.randn(2, 2, 30, 16).to(dtype)
    assert native.takes_weights(q, k)
    assert not native.takes_weights(q.repeat(1, 1, 2, 1), k)
    with torch.enable_grad():
        assert not native.takes_weights(q.requires_grad_(), k)


def test_they_are_those_of_the_attention():
    q, k, v = torch.randn(2, 4, 3, 16), torch.randn(2, 2, 30, 16), torch.randn(2, 2, 30, 16)
    visible = torch.tensor([[0, 7, 30], [30, 1, 19]], dtype=torch.int32)
    mean = staircase_weights(q, k, visible) @ v.repeat_interleave(2, 1)
    torch.testing.assert_close(mean, staircase_attention(q, k, v, visible))


def test_gradients_flow():
    q = torch.randn(1, 2, 3, 8, requires_grad=True)
    staircase_weights(q, torch.randn(1, 2, 9, 8), torch.full((1, 3), 5, dtype=torch.int32))[..., 0].sum().backward()
    assert q.grad.any()


@needs_kernel
def test_opcheck():
    visible = torch.tensor([[0, 4, 9]], dtype=torch.int32)
    torch.library.opcheck(
        torch.ops.bestow.staircase_weights.default, (torch.randn(1, 2, 3, 8), torch.randn(1, 1, 9, 8), visible, 0.3)
    )


@needs_kernel
@pytest.mark.parametrize(
    "broken",
    [
        lambda q, k, n: (q, k, n.long()),
        lambda q, k, n: (q, k[..., 1:], n),
        lambda q, k, n: (q.repeat(1, 1, 5, 1), k, n.repeat(1, 5)),
        lambda q, k, n: (q.double(), k.double(), n),
    ],
)
def test_the_op_itself_refuses_what_it_could_not_read(broken):
    problem = torch.randn(1, 2, 3, 8), torch.randn(1, 1, 9, 8), torch.ones(1, 3, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="staircase"):
        torch.ops.bestow.staircase_weights(*broken(*problem), 0.3)
