"""One token of a few sessions in one native call: what the layers give one by one."""

import copy

import pytest
import torch

from espnet_bestow import ops
from espnet_bestow.connectors.token_step import ConnectorToken
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.llm.llama_token import LlamaToken
from espnet_bestow.ops import TOKEN_ROWS
from espnet_bestow.quantize import quantize
from espnet_bestow.seats import Seats
from tests.llm.test_llama_step import FAMILIES
from tests.llm.test_llama_step import build as build_llm
from tests.llm_fixtures import write_llm
from tests.test_model import CONNECTOR_CONFIGURATIONS, batch, build

pytestmark = pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")

WITH_A_TOKEN_STEP = [name for name, (kind, _) in CONNECTOR_CONFIGURATIONS.items() if kind == "cross_attention"]


@pytest.fixture(scope="module")
def llm_path(tmp_path_factory):
    return write_llm(tmp_path_factory.mktemp("llama"), "llama")


def write(llm, state):
    """Prompts of 3 and 5 positions, then four tokens, together and alone; all logits."""
    seats, found = Seats(), []
    for _ in range(3):  # the first stays empty
        seats.take()
    torch.manual_seed(0)
    prompts = torch.randn(2, 5, 32)
    mask = torch.tensor([[False, False, True, True, True], [True] * 5])
    turns = [([2, 1], prompts, mask)]
    turns += [(seats_now, torch.randn(len(seats_now), 1, 32), None) for seats_now in ([1, 2], [2], [1], [1, 2])]
    for now, x, some in turns:
        some = torch.ones(x.shape[:2], dtype=torch.bool) if some is None else some
        state.sit(seats.place(now, some))
        found.append(llm(x, some, state, keep=1))
        for seat, row in zip(now, some, strict=True):
            seats.advance(seat, int(row.sum()))
    return torch.cat(found)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_an_llms_token_is_that_of_its_layers(family, tmp_path, monkeypatch):
    build_llm(family).save_pretrained(tmp_path)
    llm = CausalLM(str(tmp_path)).eval()
    state = llm.seated()
    assert state.token is not None
    calls = []
    monkeypatch.setattr(LlamaToken, "__call__", counted(LlamaToken.__call__, calls))
    found = write(llm, state)
    assert len(calls) == 4  # the prompts go layer by layer
    plain = llm.seated()
    plain.token = None
    torch.testing.assert_close(found, write(llm, plain), rtol=1e-4, atol=1e-5)
    assert len(calls) == 4


def counted(function, calls):
    def call(*args):
        calls.append(1)
        return function(*args)

    return call


@torch.no_grad()
@pytest.mark.parametrize("configuration", WITH_A_TOKEN_STEP)
def test_a_connectors_token_is_that_of_its_layers(llm_path, configuration, monkeypatch):
    model = build(llm_path, configuration)
    speech, _, _ = batch()
    calls, found = [], []
    monkeypatch.setattr(ConnectorToken, "__call__", counted(ConnectorToken.__call__, calls))
    for native in (True, False):
        torch.manual_seed(0)
        state, seats, out = model.connector.seated(), Seats(), []
        assert state.token is not None
        if not native:
            state.token = None
        for _ in range(3):
            seats.take()
        heard = {1: speech.frames[0], 2: speech.frames[1, :2]}
        for seat, frames in heard.items():
            state.hear(seat, frames)
        for now, seen in (([1], 0), ([1, 2], 2), ([2, 1], 5), ([2], 2), ([1], 11)):
            mask = torch.ones(len(now), 1, dtype=torch.bool)
            state.sit(seats.place(now, mask))
            visible = torch.tensor([[min(seen, len(heard[seat]))] for seat in now], dtype=torch.int32)
            text = torch.randn(len(now), 1, model.llm.width)
            out.append(model.connector(text, mask, visible, state).embeddings.flatten())
            for block in range(len(state.speech)):
                looked = state.attention(block)  # of frames that nobody sees it may say 0, or nothing
                out.append(torch.nn.functional.pad(looked, (0, 16 - looked.shape[1])).flatten())
            for seat in now:
                seats.advance(seat, 1)
        found.append(torch.cat(out))
    assert len(calls) == 5
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_small_models_lie_in_panels_and_large_ones_where_they_were(llm_path, monkeypatch):
    model = build(llm_path, "two blocks")

    def tokens():
        llm, connector = model.llm.seated(), model.connector.seated()
        shapes = [weight.dim() for weight in (*llm.token.weights, connector.token.weights[0])]
        torch.manual_seed(0)
        at = Seats()
        at.take()
        mask = torch.ones(1, 1, dtype=torch.bool)
        connector.hear(0, torch.randn(6, connector.frames.width))
        connector.sit(at.place([0], mask))
        text = model.connector(torch.randn(1, 1, 32), mask, torch.tensor([[5]], dtype=torch.int32), connector)
        llm.sit(at.place([0], mask))
        return shapes, torch.cat([text.embeddings.flatten(), model.llm(text.embeddings, mask, llm).flatten()])

    small, expected = tokens()
    monkeypatch.setattr(ops, "SMALL", 1000)
    large, found = tokens()
    assert 3 in small and 3 not in large
    theirs = {weight.data_ptr() for weight in model.llm.parameters()}
    assert all(weight.data_ptr() in theirs for weight in model.llm.seated().token.weights if weight.numel())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_only_tokens_of_not_too_many_rows_without_gradient(llm_path):
    model = build(llm_path, "two blocks")
    for token, width in ((model.connector.seated().token, model.llm.width), (model.llm.seated().token, 32)):
        one = torch.randn(1, 1, width)
        assert not token.takes(one)
        with torch.no_grad():
            assert token.takes(one) and token.takes(one.expand(TOKEN_ROWS, 1, width))
            assert not token.takes(one.expand(TOKEN_ROWS + 1, 1, width)) and not token.takes(one.expand(1, 2, width))
            with torch.autocast("cpu", torch.bfloat16):
                assert not token.takes(one)


@pytest.mark.parametrize("change", [lambda m: m.bfloat16(), lambda m: m.double(), lambda m: quantize(m, "int8")])
def test_other_precisions_go_layer_by_layer(llm_path, change):
    model = copy.deepcopy(build(llm_path, "two blocks"))
    change(model.connector)
    assert model.connector.seated().token is None
    llm = build_llm("llama")
    change(llm)
    assert not LlamaToken.fits(llm)


def test_what_changes_its_angles_with_the_length_goes_layer_by_layer():
    model = build_llm("llama")
    assert LlamaToken.fits(model)
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not LlamaToken.fits(model)


@torch.no_grad()
def test_no_seat_or_slot_beyond_the_caches():
    model = build_llm("llama")
    token = LlamaToken(model)
    caches = [torch.zeros(2, 4, 2, 12) for _ in range(4)]
    x, turn = torch.randn(1, 32), torch.randn(2, 1, 12)

    def call(row=0, slot=0, weights=token.weights, caches=caches, x=x, turn=turn):
        at = torch.tensor([row]), torch.tensor([slot])
        return ops.native.llama_token(x, weights, caches, *at, turn, 1e-6, 0.3)

    assert call(1, 3).isfinite().all()
    for wrong in (
        {"row": 2}, {"row": -1}, {"slot": 4}, {"slot": -1}, {"weights": token.weights[:-3]}, {"x": x[:, :31]},
        {"weights": token.weights + token.weights[:1]}, {"turn": turn[..., :5]}, {"caches": caches[:3]},
        {"caches": [cache[..., :8] for cache in caches]}, {"caches": [cache.double() for cache in caches]},
        {"weights": [w.double() for w in token.weights]},
        {"weights": [w[:, 1:].contiguous() if w.dim() == 3 else w for w in token.weights]},
        {"weights": [w[..., 1:].contiguous() if w.dim() == 3 else w for w in token.weights]},
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call(**wrong)
