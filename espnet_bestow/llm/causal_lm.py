"""A transformers causal LM behind the small face the model needs: embed, step with a cache, freeze, save.

Three classes, chosen by name in the YAML (``llm: full | frozen | lora``; the third lives in :mod:`.lora`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from espnet_bestow.llm.seated import SeatedLLMState
from espnet_bestow.llm.tokenizer import not_found


@dataclass
class LLMState:
    """The LLM's cache and which of its positions are real."""

    cache: Cache
    mask: Tensor  # (B, N) bool

    def repeat(self, times: int) -> "LLMState":
        """Each row ``times`` times in a row."""
        rows = torch.arange(self.mask.shape[0], device=self.mask.device).repeat_interleave(times)
        return self.select(rows)

    def select(self, rows: Tensor) -> "LLMState":
        """Keeps the given rows."""
        self.cache.reorder_cache(rows.long())  # type: ignore[arg-type]
        return LLMState(self.cache, self.mask.index_select(0, rows))

    def enter(self, mask: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What the LLM is told of new positions, mask (B, N): its attention mask, and positions (B, N)."""
        self.mask = torch.cat([self.mask, mask], 1)
        return self.mask.long(), _positions(self.mask)[:, -mask.shape[1] :]


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(1) - 1).clamp(min=0)


def load_causal_lm(path: str, dtype: str | None = None) -> PreTrainedModel:
    """Weights of the LLM at ``path`` (directory or hub id); ``dtype`` as in torch (default: float32)."""
    try:
        return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype or "float32"))
    except AttributeError as error:
        raise ValueError(f"llm dtype={dtype!r} is not a torch dtype such as float32 or bfloat16") from error
    except (OSError, ValueError) as error:
        raise not_found(path, "causal LM", error) from error


class CausalLM(nn.Module):
    """``llm: full``: every weight is trained and saved.

    Args:
        path: directory or hub id of the LLM.
        dtype: torch dtype of its weights (default: float32).
    """

    def __init__(self, path: str, dtype: str | None = None):
        super().__init__()
        self.path = path
        self.model = self.prepare(load_causal_lm(path, dtype))
        self.register_state_dict_post_hook(_drop_frozen)
        self.register_load_state_dict_pre_hook(_fill_frozen)

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """What training does to the loaded LLM; subclasses freeze or add adapters."""
        return model

    @property
    def _table(self) -> nn.Embedding:
        table = self.model.get_input_embeddings()
        assert isinstance(table, nn.Embedding)
        return table

    @property
    def width(self) -> int:
        """D_llm, the width of embeddings."""
        return self._table.embedding_dim

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding table (may exceed the tokenizer's size)."""
        return self._table.num_embeddings

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, U) -> (B, U, D_llm)."""
        return self._table(ids)

    def start(self, batch: int, device: torch.device) -> LLMState:
        """An empty cache for ``batch`` rows."""
        return LLMState(DynamicCache(config=self.model.config), torch.zeros(batch, 0, dtype=torch.bool, device=device))

    def seated(self) -> SeatedLLMState:
        """An empty cache with seats for streaming sessions."""
        return SeatedLLMState(self.model.config)

    def forward(
        self, embeddings: Tensor, mask: Tensor, state: LLMState | SeatedLLMState | None = None, keep: Tensor | int = 0
    ) -> Tensor:
        """Runs N new positions.

        Args:
            embeddings: (B, N, D_llm).
            mask: (B, N) bool, true at real positions; padding may stand anywhere.
            state: advanced by the call; None for a full pass without cache.
            keep: logits of the last ``keep`` positions, or of the positions in a 1-D tensor; 0 keeps all. (With a
                real vocabulary the logits are by far the largest tensor of a step.)

        Returns:
            logits (B, kept, V) in float32.
        """
        attention, positions = (mask.long(), _positions(mask)) if state is None else state.enter(mask, self.model.dtype)
        out = self.model(
            inputs_embeds=embeddings.to(self.model.dtype),
            attention_mask=attention,
            position_ids=positions,
            past_key_values=None if state is None else state.cache,
            use_cache=state is not None,
            logits_to_keep=keep,
        )
        return out.logits.float()

    def merged(self) -> PreTrainedModel:
        """The LLM as plain transformers weights, adapters folded in."""
        return self.model

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CausalLM":
        """Moves everything, but casts only what is trained.

        ESPnet casts the whole model to ``--train_dtype``; a frozen bfloat16 LLM would silently double.
        """
        buffers = {id(buffer) for buffer in self.buffers()}

        def move(tensor: Tensor) -> Tensor:
            frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
            if frozen or id(tensor) in buffers:
                return tensor.to(fn(tensor.new_empty(0)).device)
            return fn(tensor)

        super()._apply(move, recurse)
        return self


class FrozenCausalLM(CausalLM):
    """``llm: frozen``: the LLM is read-only; its weights never enter a checkpoint.

    Args:
        path: directory or hub id of the LLM.
        dtype: torch dtype of its weights, for instance bfloat16 (default: float32).
    """

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """See base class."""
        return model.requires_grad_(False)

    def train(self, mode: bool = True) -> "FrozenCausalLM":
        """A frozen LLM has no training mode: its dropout stays off."""
        return super().train(False)


def _frozen(module: CausalLM) -> dict[str, Tensor]:
    # Tied weights appear under every one of their names, as they do in a state dict.
    named = module.named_parameters(remove_duplicate=False)
    return {name: parameter for name, parameter in named if not parameter.requires_grad}


def _drop_frozen(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Checkpoints never hold frozen weights: those come from the path in the configuration."""
    assert isinstance(module, CausalLM)
    for name in _frozen(module):
        state.pop(prefix + name, None)


def _fill_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """... and so a strict load does not miss them."""
    assert isinstance(module, CausalLM)
    for name, parameter in _frozen(module).items():
        state.setdefault(prefix + name, parameter.detach())
