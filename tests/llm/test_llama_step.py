"""The short forward pass gives the logits of transformers' own."""

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.cache_utils import DynamicCache

from espnet_bestow.llm.llama_step import llama_pass, llama_step, suits, suits_now
from espnet_bestow.quantize import quantize
from espnet_bestow.visibility import causal_mask

SMALL = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attention_bias=True, mlp_bias=True)),
    "llama 3": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=LLAMA_3, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
}


def build(family):
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.dim() == 1 else 0.0, 0.2)
    return model


def positions_of(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_steps_equal_the_full_pass(family):
    model = build(family)
    assert suits(model)
    x = torch.randn(2, 9, 32)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, :3] = False  # shorter on the left
    whole = model(inputs_embeds=x, attention_mask=mask.long(), position_ids=positions_of(mask)).logits
    cache, found = DynamicCache(config=model.config), []
    for first, last in ((0, 5), (5, 6), (6, 7), (7, 9)):  # a prompt, tokens one by one, a draft
        so_far = mask[:, :last]
        allowed, positions = causal_mask(so_far, last - first), positions_of(so_far)[:, first:]
        found.append(llama_step(model, x[:, first:last], allowed, positions, cache, 0))
    torch.testing.assert_close(torch.cat(found, 1)[mask], whole[mask], rtol=1e-4, atol=1e-5)


SCATTERED = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 1, 0, 1, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("readers", [(), (0, 1)])
def test_a_pass_over_one_line_gives_the_logits_and_gradients_of_the_padded_one(family, readers):
    model = build(family)
    assert suits_now(model)
    x = torch.randn(3, 6, 32, requires_grad=True)
    shift = torch.randn(3, 6, 32)  # a reader knows rows and columns
    keep = torch.tensor([1, 2, 4])
    kept, chosen = SCATTERED[:, keep], torch.randn(3, 3, 40)

    def through(run):
        model.zero_grad()
        logits = run()[kept]
        (gradient,) = torch.autograd.grad((logits * chosen[kept]).sum(), x, retain_graph=True)
        (logits * chosen[kept]).sum().backward()
        return logits.detach(), gradient[SCATTERED], [p.grad.clone() for p in model.parameters() if p.grad is not None]

    def own():
        hooks = [
            model.model.layers[at].register_forward_pre_hook(lambda _, args: (args[0] + shift, *args[1:]))
            for at in readers
        ]
        out = model(inputs_embeds=x, attention_mask=SCATTERED.long(), position_ids=positions_of(SCATTERED)).logits
        for hook in hooks:
            hook.remove()
        return out[:, keep]

    read = dict.fromkeys(readers, lambda hidden: hidden + shift)
    for found, expected in zip(through(lambda: llama_pass(model, x, SCATTERED, keep, read)), through(own), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_a_pass_does_not_do_is_left_to_transformers():
    model = LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.1))
    assert suits_now(model.eval())
    assert not suits_now(model.train())
    model = build("llama").train()
    assert suits_now(model)
    model.gradient_checkpointing_enable()
    assert not suits_now(model)


@torch.no_grad()
def test_one_row_needs_no_mask_and_keeps_what_is_asked():
    model = build("llama")
    x, positions = torch.randn(1, 4, 32), torch.arange(4)[None]
    whole = model(inputs_embeds=x).logits
    for keep, kept in ((1, [3]), (0, [0, 1, 2, 3]), (torch.tensor([1, 3]), [1, 3])):
        cache = DynamicCache(config=model.config)
        causal = causal_mask(torch.ones(1, 4, dtype=torch.bool), 4)
        torch.testing.assert_close(llama_step(model, x, causal, positions, cache, keep), whole[:, kept])
    cache = DynamicCache(config=model.config)
    for t in range(4):
        last = llama_step(model, x[:, t : t + 1], None, positions[:, t : t + 1], cache, 1)
    torch.testing.assert_close(last[:, 0], whole[:, 3])


@torch.no_grad()
def test_half_precision_and_rounded_weights_take_part():
    model = build("qwen3").bfloat16()
    x, positions = torch.randn(1, 4, 32).bfloat16(), torch.arange(4)[None]
    causal = causal_mask(torch.ones(1, 4, dtype=torch.bool), 4)
    out = llama_step(model, x, causal, positions, DynamicCache(config=model.config), 0)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, model(inputs_embeds=x).logits, rtol=0.1, atol=0.1)
    model, x = build("qwen3"), x.float()
    before = llama_step(model, x, causal, positions, DynamicCache(config=model.config), 0)
    quantize(model, "int8")
    after = llama_step(model, x, causal, positions, DynamicCache(config=model.config), 0)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, model(inputs_embeds=x).logits, rtol=1e-4, atol=1e-5)


def test_what_it_does_not_compute_is_left_to_transformers():
    assert not suits(MistralForCausalLM(MistralConfig(**SMALL, sliding_window=8)))
    windows = {"layer_types": ["full_attention", "sliding_attention"], "use_sliding_window": True, "sliding_window": 8}
    assert not suits(Qwen2ForCausalLM(Qwen2Config(**SMALL, **windows)))
    assert not suits(GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=4)))
