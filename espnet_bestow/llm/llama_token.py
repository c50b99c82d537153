"""A Llama's step for one token of a few sessions as one native call (see :mod:`.llama_step`, its twin)."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from espnet_bestow.llm.llama_step import suits
from espnet_bestow.ops import TOKEN_ROWS, laid_out, native
from espnet_bestow.seats import Placement, SeatBuffer

_STEADY = {"default", "linear", "llama3", "yarn"}
"""Rotary positions whose angles do not depend on the length of the text."""


class LlamaToken:
    """What the native call needs of an LLM, with its weights as they are now.

    Args:
        model: that :meth:`fits`.
    """

    def __init__(self, model: Any):
        inner = model.model
        attention = inner.layers[0].self_attn
        self.rotary = inner.rotary_emb
        self.eps, self.scale = inner.norm.variance_epsilon, attention.scaling
        layers = [part for layer in inner.layers for part in _parts(layer)]
        self.weights = laid_out([*layers, inner.norm, model.lm_head])
        width = attention.head_dim
        self._like = inner.norm.weight.new_empty(0, 0, attention.k_proj.out_features // width, width)
        self._turns = inner.norm.weight.new_empty(2, 0, width)  # cosines and sines of the positions so far

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether all of it is plain float32 on a CPU, and there is a kernel."""
        if native is None or not suits(model) or model.config.hidden_act != "silu":
            return False
        rope = getattr(model.config, "rope_parameters", None) or {}
        linears = [m for name, m in model.named_modules() if name.endswith(("_proj", "lm_head"))]
        weights = list(model.parameters())
        return (
            rope.get("rope_type", "default") in _STEADY
            and all(type(each) is nn.Linear for each in linears)
            and all(each.dtype == torch.float32 and each.device.type == "cpu" for each in weights)
            and all(each.is_contiguous() for each in weights)
        )

    def takes(self, x: Tensor) -> bool:
        """Whether x (B, U, D) is one token of not too many rows, and nobody wants gradients."""
        few = x.shape[1] == 1 and len(x) <= TOKEN_ROWS
        return few and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")

    def __call__(self, x: Tensor, at: Placement, buffers: list[SeatBuffer]) -> Tensor:
        """x (B, 1, D), where it goes, keys and values of each layer -> logits (B, 1, V)."""
        assert native is not None
        slots = at.slots[:, 0].contiguous()
        if self._turns.shape[1] < at.total:
            self._turns = torch.stack(self.rotary(x, torch.arange(2 * at.total)[None]))[:, 0].contiguous()
        caches = [buffer.room(at, self._like) for buffer in buffers]
        turn = self._turns.index_select(1, slots)
        return native.llama_token(x[:, 0], self.weights, caches, at.rows, slots, turn, self.eps, self.scale)[:, None]


def _parts(layer: Any) -> list[nn.Module | None]:
    own, mlp = layer.self_attn, layer.mlp
    of_heads = getattr(own, "q_norm", None), getattr(own, "k_norm", None)
    norms = layer.input_layernorm, layer.post_attention_layernorm, *of_heads
    linears = own.q_proj, own.k_proj, own.v_proj, own.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    return [*norms, *linears]
