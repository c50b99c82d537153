"""A step of Llama and its kin in as few operations as it takes.

transformers' own forward pass serves training. While text is written it runs for one token at a time, and then what
surrounds the arithmetic (masks made anew, keyword arguments, captured outputs) costs several times as much as the
arithmetic of a small model. Layers are called as the modules they are, so adapters and rounded weights take part.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from espnet_bestow.ops import linear

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""RMSNorm before each part, rotary positions, grouped keys and values, a gated feed-forward."""

Reader = Callable[[Tensor], Tensor]
"""What hidden states (B, U, D) go through before a layer."""
NO_READERS: Mapping[int, Reader] = MappingProxyType({})


def suits(model: PreTrainedModel) -> bool:
    """Whether this pass computes what the model's own does: one of the families, without a sliding window."""
    layers: list[Any] = list(model.model.layers) if type(model).__name__ in FAMILIES else []
    return (
        bool(layers)
        and all(getattr(layer.self_attn, "sliding_window", None) is None for layer in layers)
        and getattr(model.config, "sliding_window", None) is None
    )


def llama_step(
    model: Any,
    x: Tensor,
    allowed: Tensor | None,
    positions: Tensor,
    cache: Cache,
    keep: Tensor | int,
    readers: Mapping[int, Reader] = NO_READERS,
) -> Tensor:
    """Runs U new positions.

    Args:
        model: one that :func:`suits`.
        x: (B, U, D) embeddings in the model's precision.
        allowed: (B, U, N) bool, which of the N positions so far each new one sees; None: all of them.
        positions: (B, U) number of each in its row.
        cache: grows by the new positions.
        keep: which positions' logits, as in transformers.
        readers: what x goes through before the layers of these numbers.

    Returns:
        logits (B, kept, V).
    """
    inner = model.model
    turn = _signed(*inner.rotary_emb(x, positions))
    mask = None if allowed is None else allowed[:, None]  # (B, 1, U, N)
    for number, layer in enumerate(inner.layers):
        if number in readers:
            x = readers[number](x)
        x = x + _attention(layer.self_attn, _norm(layer.input_layernorm, x), turn, mask, cache, number)
        mlp = layer.mlp
        y = _norm(layer.post_attention_layernorm, x)
        x = x + _linear(mlp.down_proj, mlp.act_fn(_linear(mlp.gate_proj, y)) * _linear(mlp.up_proj, y))
    kept = keep if isinstance(keep, Tensor) else slice(-keep, None) if keep else slice(None)
    return _linear(model.lm_head, _norm(inner.norm, x[:, kept]))


def _attention(
    attention: Any, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache, number: int
) -> Tensor:
    rows, new, _ = x.shape
    heads = (rows, new, -1, attention.head_dim)
    q, k, v = (_linear(each, x).view(heads) for each in (attention.q_proj, attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        q, k = _norm(attention.q_norm, q), _norm(attention.k_norm, k)
    keys, values = cache.update(_rotated(k, turn).transpose(1, 2), v.transpose(1, 2), number)
    out = F.scaled_dot_product_attention(
        _rotated(q, turn).transpose(1, 2), keys, values, attn_mask=mask, scale=attention.scaling,
        enable_gqa=q.shape[2] != keys.shape[1],
    )  # fmt: skip
    return _linear(attention.o_proj, out.transpose(1, 2).reshape(rows, new, -1))


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    if type(module) is not nn.Linear:  # an adapter around one, or rounded weights
        return module(x)
    return linear(x, module.weight, module.bias)


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _signed(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines, and sines of which the first half is negated: the halves of (x1, x2) then only have to change places."""
    half = sin.shape[-1] // 2
    return cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, :, None]  # (B, U, 1, D)


def _rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """(B, U, H, D) -> (B, U, H, D): each pair of x turned by its position's angle."""
    cos, sin = turn
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
