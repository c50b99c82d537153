"""Llama and its kin in as few operations as it takes: a step of decoding, and a full pass that computes no padding.

While text is written transformers' own forward pass runs for one token at a time, and then what surrounds the
arithmetic (masks made anew, keyword arguments, captured outputs) costs several times as much as the arithmetic of a
small model. In training it computes padding as it computes text. Layers are called as the modules they are, so adapters
and rounded weights take part.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from espnet_bestow.line import Line
from espnet_bestow.ops import linear

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
"""RMSNorm before each part, rotary positions, grouped keys and values, a gated feed-forward."""

Reader = Callable[[Tensor], Tensor]
"""What hidden states (B, U, D) go through before a layer."""
NO_READERS: Mapping[int, Reader] = MappingProxyType({})

Attend = Callable[[Tensor, Tensor, Tensor, int, float], Tensor]
"""Queries (B, H, U, D), keys and values (B, H_kv, U, D) of new positions, the layer's number and the scale of scores ->
what is read, (B, H, U, D)."""


def suits(model: PreTrainedModel) -> bool:
    """Whether this pass computes what the model's own does: one of the families, without a sliding window."""
    layers: list[Any] = list(model.model.layers) if type(model).__name__ in FAMILIES else []
    return (
        bool(layers)
        and all(getattr(layer.self_attn, "sliding_window", None) is None for layer in layers)
        and getattr(model.config, "sliding_window", None) is None
    )


def suits_now(model: PreTrainedModel) -> bool:
    """Whether :func:`llama_pass` computes what a model that :func:`suits` would as it is set: in training or not."""
    if not model.training:
        return True
    # transformers' own pass recomputes layers, and drops attention.
    recomputes = any(getattr(each, "gradient_checkpointing", False) for each in model.modules())
    drops = getattr(model.config, "attention_dropout", 0.0) > 0.0
    return not (recomputes or drops)


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

    def attend(q: Tensor, k: Tensor, v: Tensor, number: int, scale: float) -> Tensor:
        keys, values = cache.update(k, v, number)
        mask = None if allowed is None else allowed[:, None]  # (B, 1, U, N)
        gqa = q.shape[1] != keys.shape[1]
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, scale=scale, enable_gqa=gqa)

    x = _layers(model, x, positions, attend, readers)
    return _logits(model, x[:, _kept(keep)])


def llama_pass(
    model: Any, x: Tensor, mask: Tensor, keep: Tensor | int, readers: Mapping[int, Reader] = NO_READERS
) -> Tensor:
    """Runs a whole text without a cache, as one line of the real positions of all rows.

    Args:
        model: one that :func:`suits` and :func:`suits_now`.
        x: (B, U, D) embeddings in the model's precision.
        mask: (B, U) bool, true at real positions.
        keep: which positions' logits, as in transformers.
        readers: what x goes through before the layers of these numbers.

    Returns:
        logits (B, kept, V); those of padding mean nothing.
    """
    line = Line(mask)

    def attend(q: Tensor, k: Tensor, v: Tensor, _: int, scale: float) -> Tensor:
        return line.attend(q, line.rows(k), line.rows(v), scale)

    def lined(reader: Reader) -> Reader:
        return lambda hidden: line.lay(reader(line.batch(hidden)))

    hidden = _layers(model, line.lay(x), line.numbers, attend, {at: lined(each) for at, each in readers.items()})
    return _logits(model, line.batch(hidden)[:, _kept(keep)])


def _kept(keep: Tensor | int) -> Tensor | slice:
    return keep if isinstance(keep, Tensor) else slice(-keep, None) if keep else slice(None)


def _layers(model: Any, x: Tensor, positions: Tensor, attend: Attend, readers: Mapping[int, Reader]) -> Tensor:
    """x (B, U, D) through all layers; positions (B, U) are numbers within a text."""
    turn = _signed(*model.model.rotary_emb(x, positions))
    for number, layer in enumerate(model.model.layers):
        if number in readers:
            x = readers[number](x)
        x = x + _attention(layer.self_attn, _norm(layer.input_layernorm, x), turn, attend, number)
        mlp = layer.mlp
        y = _norm(layer.post_attention_layernorm, x)
        x = x + _linear(mlp.down_proj, mlp.act_fn(_linear(mlp.gate_proj, y)) * _linear(mlp.up_proj, y))
    return x


def _logits(model: Any, x: Tensor) -> Tensor:
    return _linear(model.lm_head, _norm(model.model.norm, x))


def _attention(attention: Any, x: Tensor, turn: tuple[Tensor, Tensor], attend: Attend, number: int) -> Tensor:
    rows, new, _ = x.shape
    heads = (rows, new, -1, attention.head_dim)
    q, k, v = (_linear(each, x).view(heads) for each in (attention.q_proj, attention.k_proj, attention.v_proj))
    if hasattr(attention, "q_norm"):
        q, k = _norm(attention.q_norm, q), _norm(attention.k_norm, k)
    q, k, v = (each.transpose(1, 2) for each in (_rotated(q, turn), _rotated(k, turn), v))
    out = attend(q, k, v, number, attention.scaling)
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
