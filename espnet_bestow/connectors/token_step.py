"""A cross-attention connector's step for one token of a few sessions as one native call.

With small models, asking for a token's operations one by one from Python takes several times as long as they do.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from espnet_bestow.connectors.seated import AbsorbedSpeech, SeatedCrossAttentionState
from espnet_bestow.ops import TOKEN_ROWS, Linear, laid_out, native
from espnet_bestow.seats import Placement

if TYPE_CHECKING:
    from espnet_bestow.connectors.cross_attention import BestowBlock, CrossAttentionConnector


class ConnectorToken:
    """What the native call needs of a connector, with its weights as they are now.

    Args:
        connector: that :meth:`suits`.
        speech: each block's view of the frames.
    """

    def __init__(self, connector: "CrossAttentionConnector", speech: Sequence[AbsorbedSpeech]):
        self.heads = connector.blocks[0].cross_attention.num_heads
        self.eps = connector.norm.eps
        blocks = [part for each in zip(connector.blocks, speech, strict=True) for part in _parts(*each)]
        self.weights = laid_out([connector.text_in, *blocks, connector.norm, connector.text_out])
        self._silence = connector.text_in.weight.new_empty(0, 0, speech[0].frames.width)
        self._like = connector.text_in.weight.new_empty(0, 0, self.heads, connector.text_in.out_features // self.heads)

    @staticmethod
    def suits(connector: "CrossAttentionConnector") -> bool:
        """Whether all of it is plain float32 on a CPU, and there is a kernel."""
        layers = [module for module in connector.modules() if hasattr(module, "weight")]
        plain = all(type(layer) in (nn.Linear, Linear, nn.LayerNorm) for layer in layers)
        weights = list(connector.parameters())
        at_home = all(each.dtype == torch.float32 and each.device.type == "cpu" for each in weights)
        return native is not None and plain and at_home and all(each.is_contiguous() for each in weights)

    def takes(self, text: Tensor) -> bool:
        """Whether text (B, U, D_llm) is one token of not too many rows, and nobody wants gradients."""
        few = text.shape[1] == 1 and len(text) <= TOKEN_ROWS and text.dtype == torch.float32
        return few and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")

    def __call__(self, text: Tensor, visible: Tensor, state: SeatedCrossAttentionState) -> Tensor:
        """text (B, 1, D_llm), visible (B, 1) -> what the connector adds to the text, (B, 1, D_llm)."""
        at = state.at
        assert native is not None and isinstance(at, Placement)
        caches = [buffer.room(at, self._like) for buffer in state.text_buffers] if self._text else []
        heard = state.frames.buffer.data
        out, state.looked = native.connector_token(
            text[:, 0], self.weights, caches, self._silence if heard is None else heard, visible[:, 0].contiguous(),
            at.rows, at.slots[:, 0].contiguous(), len(state.speech), self.heads, self.eps,
        )  # fmt: skip
        return out[:, None]

    @property
    def _text(self) -> bool:
        """Whether the blocks have self-attention."""
        return self.weights[2].numel() > 0


def _parts(block: "BestowBlock", view: AbsorbedSpeech) -> list[nn.Module | Tensor | None]:
    own, cross = block.self_attention, block.cross_attention
    text = [None] * 4 if own is None else [own.query, own.key, own.value, own.out]
    found = [block.self_norm, *text, block.cross_norm, cross.query, view.key, view.value, view.value_bias, cross.out]
    return [*found, block.ffn_norm, block.ffn[0], block.ffn[-1]]
