"""What is peculiar to reading in the LLM's layers; the properties of all connectors are in test_model.py."""

import pytest
import torch
from torch import nn

from espnet_bestow.connectors import PerLayerConnector, Speech
from espnet_bestow.llm.causal_lm import CausalLM, FrozenCausalLM
from espnet_bestow.llm.lora import LoRACausalLM
from espnet_bestow.model import BestowModel
from espnet_bestow.task import _check_conf
from tests.llm_fixtures import write_llm


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_llm(tmp_path_factory.mktemp("llm")))


def model_of(llm, **options) -> BestowModel:
    torch.manual_seed(0)
    options = {"num_heads": 2, "gate": 0.7, "dropout": 0.0, **options}
    connector = PerLayerConnector(llm.width, 6, llm.depth, **options)
    return BestowModel(nn.Identity(), connector, llm, nn.Identity()).eval()


def logits(model, seed=0):
    """Of two texts about two recordings."""
    torch.manual_seed(seed)
    speech = Speech(torch.randn(2, 11, 6), torch.tensor([11, 7]))
    ids, mask = torch.randint(5, 50, (2, 4)), torch.ones(2, 4, dtype=torch.bool)
    return model.teacher_forced(speech, ids, mask, speech.lengths[:, None].expand(2, 4).int())


@pytest.mark.parametrize(("every", "places"), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (5, [0]), (9, [0])])
def test_every_so_many_layers_the_first_reads(every, places):
    connector = PerLayerConnector(16, 6, 5, every=every, num_heads=2)
    speech = Speech(torch.randn(1, 3, 6), torch.tensor([3]))
    text, mask = torch.randn(1, 2, 16), torch.ones(1, 2, dtype=torch.bool)
    found = connector(text, mask, torch.full((1, 2), 3, dtype=torch.int32), connector.start(speech))
    assert sorted(found.readers) == places and len(connector.layers) == len(places)
    assert found.embeddings is text and found.mask is mask


def test_each_layer_counts(path):
    model = model_of(CausalLM(path))
    whole = logits(model)
    for layer in model.connector.layers:
        for gate in (layer.gate, layer.ffn_gate):
            with torch.no_grad():
                gate.fill_(0.0)
                assert (logits(model) - whole).abs().max() > 1e-3
                gate.fill_(0.7)
    assert torch.equal(logits(model), whole)


def test_behind_closed_gates_only_these_learn_at_first(path):
    model = model_of(CausalLM(path), gate=0.0).train()
    logits(model).square().sum().backward()
    moved = {name for name, each in model.connector.named_parameters() if each.grad.abs().max() > 0}
    assert moved == {f"layers.{n}.{gate}" for n in (0, 1) for gate in ("gate", "ffn_gate")}
    opened = model_of(CausalLM(path)).train()
    logits(opened).square().sum().backward()
    idle = [name for name, each in opened.connector.named_parameters() if not each.grad.abs().max() > 1e-6]
    assert all(name.endswith("key.bias") for name in idle)  # it moves all scores of a query alike


def test_a_call_leaves_nothing_behind(path):
    """The LLM's own pass is the one that training uses; what reads in it is there for one call."""
    model = model_of(CausalLM(path))
    hooked = [m for m in model.llm.modules() if m._forward_pre_hooks]
    logits(model)
    model.connector.layers[1].gate.data = torch.ones(3)  # the second layer's reader fails, amid the pass
    with pytest.raises(RuntimeError):
        logits(model)
    assert [m for m in model.llm.modules() if m._forward_pre_hooks] == hooked == []


@pytest.mark.parametrize("kind", [FrozenCausalLM, LoRACausalLM])
def test_an_llm_in_another_precision_is_read_in_it(path, kind):
    model = model_of(kind(path, dtype="bfloat16"))
    assert next(model.connector.parameters()).dtype == torch.float32
    whole = logits(model)
    assert whole.isfinite().all()
    whole.sum().backward()
    assert all(each.grad is not None for each in model.connector.parameters())


def test_the_llm_says_how_many_layers_there_are(path):
    llm = CausalLM(path)
    connector = PerLayerConnector.beside(llm.width, llm.depth, 6, num_heads=2, every=2)
    assert llm.depth == 2 and list(connector.places) == [0]
    with pytest.raises(ValueError, match=r"connector_conf: unknown key text_layers; PerLayerConnector knows"):
        _check_conf("connector", PerLayerConnector, {"text_layers": 3})
    with pytest.raises(ValueError, match="every=0 must be >= 1"):
        PerLayerConnector(16, 6, 2, every=0)
