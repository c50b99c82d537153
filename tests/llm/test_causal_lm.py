import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma3Config

from espnet_bestow.llm.causal_lm import CausalLM, FrozenCausalLM, load_causal_lm
from espnet_bestow.llm.lora import LoRACausalLM
from espnet_bestow.llm.tokenizer import context_length, load_config
from tests.llm_fixtures import write_llm

FAMILIES = ("llama", "qwen2", "gpt2")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return {family: str(write_llm(tmp_path_factory.mktemp(family), family)) for family in FAMILIES}


def lora(path, **options):
    targets = {"targets": ["c_attn"]} if "gpt2" in path else {}
    return LoRACausalLM(path, **{"rank": 2, **targets, **options})


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_path_equals_ids_path(paths, family):
    llm = CausalLM(paths[family]).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    ours = llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(ours, llm.model(input_ids=ids).logits)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_keep_selects_positions(paths, family):
    llm = CausalLM(paths[family]).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    full = llm(llm.embed(ids), mask)
    torch.testing.assert_close(llm(llm.embed(ids), mask, keep=2), full[:, 2:])
    torch.testing.assert_close(llm(llm.embed(ids), mask, keep=torch.tensor([1, 3])), full[:, [1, 3]])


def test_full_trains_and_saves_everything(paths):
    llm = CausalLM(paths["llama"])
    assert all(p.requires_grad for p in llm.parameters())
    assert set(llm.state_dict()) == {"model." + n for n in llm.model.state_dict()}


@pytest.mark.parametrize("build", [FrozenCausalLM, lora], ids=["frozen", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_weights_are_neither_saved_nor_missed(paths, family, build):
    llm = nn.ModuleDict({"llm": build(paths[family])})
    state = llm.state_dict()
    assert all("lora_" in name for name in state)
    llm.load_state_dict(state, strict=True)


def test_what_is_frozen_later_is_saved_all_the_same(paths):
    """ESPnet's --freeze_param on an LLM that other stages have trained: only the checkpoint has its weights."""
    llm, other = CausalLM(paths["llama"]), CausalLM(paths["llama"])
    with torch.no_grad():
        for parameter in llm.requires_grad_(False).parameters():
            parameter.add_(1.0)
    other.load_state_dict(llm.state_dict(), strict=True)
    for a, b in zip(llm.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_strict_loading_still_notices_a_missing_adapter(paths):
    llm = lora(paths["llama"])
    state = llm.state_dict()
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        llm.load_state_dict(state, strict=True)


def test_casting_the_model_does_not_cast_frozen_weights(paths):
    model = nn.ModuleDict({"llm": LoRACausalLM(paths["llama"], rank=2, dtype="bfloat16"), "other": nn.Linear(2, 2)})
    model.to(torch.float64)
    by_name = dict(model.named_parameters())
    assert {p.dtype for n, p in by_name.items() if "lora_" in n} == {torch.float64}
    assert {p.dtype for n, p in by_name.items() if n.startswith("llm") and "lora_" not in n} == {torch.bfloat16}
    assert by_name["other.weight"].dtype == torch.float64


def test_a_frozen_llm_stays_in_eval_mode(paths):
    assert not FrozenCausalLM(paths["gpt2"]).train().model.training
    assert CausalLM(paths["gpt2"]).train().model.training


def test_new_adapters_change_nothing_and_trained_ones_merge(paths):
    ids = torch.tensor([[5, 6, 7, 8]])
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad():
        plain = CausalLM(paths["llama"]).eval()
        llm = lora(paths["llama"]).eval()
        expected = plain(plain.embed(ids), mask)
        torch.testing.assert_close(llm(llm.embed(ids), mask), expected)
        for name, parameter in llm.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        trained = llm(llm.embed(ids), mask)
        assert (trained - expected).abs().max() > 1e-3
        merged = llm.merged()
        torch.testing.assert_close(merged(input_ids=ids).logits, trained, rtol=1e-4, atol=1e-5)
    assert not any("lora" in name for name, _ in merged.named_parameters())


def test_a_merged_llm_is_a_plain_checkpoint(paths, tmp_path):
    llm = lora(paths["llama"]).eval()
    llm.merged().save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[5, 6]])
    torch.testing.assert_close(again(input_ids=ids).logits, llm.model(input_ids=ids).logits)


def test_adapters_on_an_output_layer_that_is_also_the_table_leave_the_table_alone(paths, tmp_path):
    llm = lora(paths["qwen2"], targets=["q_proj", "lm_head"]).eval()
    assert llm.model.lm_head.base_layer.weight is llm.model.model.embed_tokens.weight
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        trained = llm(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool))
        llm.merged().save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path)(input_ids=ids).logits
    torch.testing.assert_close(again, trained, rtol=1e-4, atol=1e-4)


def test_shared_first_matrices_are_one_parameter(paths):
    plain, shared = lora(paths["llama"]), lora(paths["llama"], share_input=["q_proj", "k_proj", "v_proj"])

    def count(llm):
        return sum(p.numel() for p in llm.parameters() if p.requires_grad)

    layers, rank, width = 2, 2, 32
    assert count(plain) - count(shared) == layers * 2 * rank * width
    attention = shared.model.model.layers[0].self_attn
    assert attention.q_proj.lora_A["default"] is attention.v_proj.lora_A["default"]


def test_unknown_lora_targets_list_the_linear_layers(paths):
    with pytest.raises(ValueError, match=r"lora targets \['nope'\] are not layers .*'q_proj'"):
        LoRACausalLM(paths["llama"], targets=["nope"])
    with pytest.raises(ValueError, match=r"lora targets \['embed_tokens'\] are not layers"):
        LoRACausalLM(paths["llama"], targets=["embed_tokens"])


def test_what_is_trained_has_no_precision_of_its_own(paths):
    assert CausalLM(paths["llama"], dtype="float32").model.dtype == torch.float32
    with pytest.raises(ValueError, match="llm dtype='bfloat16' is for weights that stay frozen"):
        CausalLM(paths["llama"], dtype="bfloat16")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """An LLM that also takes images, its vision tower as deep as its language model."""
    path = tmp_path_factory.mktemp("gemma3")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    heads = {"num_key_value_heads": 2, "head_dim": 8}
    text = {"vocab_size": 60, "max_position_embeddings": 96, "sliding_window": 6, "pad_token_id": 0}
    sight = {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(
        text_config={**shape, **heads, **text}, vision_config={**shape, **sight}, mm_tokens_per_image=1
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return str(path)


@torch.no_grad()
def test_of_an_llm_that_also_sees_only_the_language_model_counts(seeing):
    llm = CausalLM(seeing).eval()
    assert (llm.context, context_length(load_config(seeing)), llm.depth) == (96, 96, 2)
    ids = torch.randint(4, 60, (1, 10))
    x, mask = llm.embed(ids), torch.ones_like(ids, dtype=torch.bool)
    full = llm(x, mask)
    torch.testing.assert_close(full, llm.model(input_ids=ids).logits, rtol=1e-5, atol=1e-5)
    state = llm.start(1, ids.device)
    steps = torch.cat([llm(x[:, u : u + 1], mask[:, u : u + 1], state) for u in range(10)], 1)
    torch.testing.assert_close(steps, full, rtol=1e-5, atol=1e-5)
    calls = []
    llm(x, mask, readers={1: lambda hidden: calls.append(hidden.shape) or hidden})
    assert calls == [(1, 10, 32)]


def test_adapters_of_an_llm_that_also_sees_are_where_text_goes_through(seeing):
    llm = lora(seeing)
    ids = torch.randint(4, 60, (1, 5))
    llm.train()(llm.embed(ids), torch.ones_like(ids, dtype=torch.bool)).sum().backward()
    trained = {name: parameter for name, parameter in llm.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 3 * 2  # layers, targets, matrices
    assert all(parameter.grad is not None for parameter in trained.values())


def test_missing_llm_and_wrong_dtype_are_named(paths, tmp_path):
    with pytest.raises(FileNotFoundError, match="llm path='no/such'"):
        load_causal_lm("no/such")
    with pytest.raises(FileNotFoundError, match="llm path="):
        load_causal_lm(str(tmp_path))
    with pytest.raises(ValueError, match="llm dtype='float7'"):
        load_causal_lm(paths["llama"], "float7")
