"""Best CTC paths: the compiled op against its twin (tests/test_alignment.py compares it with a search of all paths)."""

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.ops import ctc_best_path, reference

native = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")


def problem(seed):
    """Ragged rows, some of which do not fit their frames; few classes, so that tokens repeat."""
    draw = torch.Generator().manual_seed(seed)
    batch, frames, tokens = (int(torch.randint(0, most, (), generator=draw)) for most in (5, 20, 8))
    logp = torch.randn(batch, frames, 4, generator=draw).log_softmax(-1)
    lengths = torch.randint(0, frames + 1, (batch,), generator=draw)
    said = torch.randint(0, tokens + 1, (batch,), generator=draw)
    target = torch.randint(0, 3, (batch, tokens), generator=draw)
    target[torch.arange(tokens) >= said[:, None]] = -1
    return logp, lengths, target, said


@native
def test_the_compiled_op_finds_what_its_twin_finds():
    for seed in range(300):
        each = problem(seed)
        assert ops.native.ctc_best_path(*each).equal(reference.ctc_best_path(*each)), f"seed {seed}"


@pytest.mark.parametrize("find", [pytest.param(ctc_best_path, marks=native), reference.ctc_best_path])
@pytest.mark.parametrize("tokens", [0, 1, 3])
def test_scores_that_are_no_numbers_have_no_path(find, tokens):
    logp, one = torch.full((1, 50, 3), torch.nan), torch.tensor([50])
    assert find(logp, one, torch.zeros(1, tokens, dtype=torch.int64), torch.tensor([tokens])).tolist() == [[-1] * 50]


@native
def test_a_class_for_blank_must_be_there():
    with pytest.raises(RuntimeError, match="a class for blank"):
        ctc_best_path(torch.zeros(1, 2, 0), torch.tensor([2]), torch.zeros(1, 0, dtype=torch.int64), torch.tensor([0]))


@pytest.mark.parametrize("find", [pytest.param(ctc_best_path, marks=native), reference.ctc_best_path])
def test_a_path_by_hand(find):
    likely = torch.tensor([[0, 2, 2, 1, 2, 0]])  # 2 is blank
    logp = torch.full((1, 6, 3), 0.1).scatter(2, likely[..., None], 0.8).log()
    one = torch.tensor([6])
    assert find(logp, one, torch.tensor([[0, 1, 0]]), torch.tensor([3])).tolist() == [[0, -1, -1, 1, -1, 2]]
    # Fewer frames, of which the rest is padding; more tokens than frames.
    assert find(logp, one - 2, torch.tensor([[0, 1]]), torch.tensor([2])).tolist() == [[0, -1, -1, 1, -1, -1]]
    assert find(logp, one - 4, torch.tensor([[0, 1, 0]]), torch.tensor([3])).tolist() == [[-1] * 6]


@native
def test_the_op_traces():
    logp, lengths, target, said = problem(1)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(torch.ops.bestow.ctc_best_path, (logp, lengths, target, said), test_utils=tests)


@native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": torch.tensor([7])}, "row 0 has 7 of 6 frames"),
        ({"lengths": torch.tensor([-1])}, "row 0 has -1 of 6 frames"),
        ({"target_lengths": torch.tensor([3])}, "3 of 2 tokens"),
        ({"target": torch.tensor([[0, 2]])}, "row 0 has token 2 of 2"),
        ({"target": torch.tensor([[0, -1]])}, "row 0 has token -1 of 2"),
        ({"target": torch.tensor([[0, 1]]).int()}, "must be int64"),
        ({"logp": torch.zeros(1, 6, 3).double()}, "must be float32"),
    ],
)
def test_what_does_not_belong_together_is_refused(change, message):
    each = {
        "logp": torch.zeros(1, 6, 3),
        "lengths": torch.tensor([6]),
        "target": torch.tensor([[0, 1]]),
        "target_lengths": torch.tensor([2]),
    }
    with pytest.raises(RuntimeError, match=message):
        ops.native.ctc_best_path(**{**each, **change})
