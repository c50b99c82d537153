"""A transformers causal LM behind the small face the model needs: embed, step with a cache, freeze, save.

Three classes, chosen by name in the YAML (``llm: full | frozen | lora``; the third lives in :mod:`.lora`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache

from espnet_bestow.llm.llama_step import NO_READERS, Reader, llama_pass, llama_step, suits, suits_now
from espnet_bestow.llm.llama_token import LlamaToken
from espnet_bestow.llm.seated import SeatedLLMState
from espnet_bestow.llm.sight import Sight
from espnet_bestow.llm.tokenizer import context_length, not_found
from espnet_bestow.visibility import causal_mask


@dataclass
class LLMState:
    """The LLM's cache and which of its positions are real."""

    cache: Cache
    mask: Tensor  # (B, N) bool

    def select(self, rows: Tensor) -> "LLMState":
        """The given rows, each as often as it is named."""
        self.cache.reorder_cache(rows.long())  # type: ignore[arg-type]
        return LLMState(self.cache, self.mask.index_select(0, rows))

    def enter(self, mask: Tensor) -> tuple[Tensor | None, Tensor]:
        """New positions, mask (B, U): which of all N they may see, (B, U, N), None for all; their numbers (B, U)."""
        self.mask = torch.cat([self.mask, mask], 1)
        return causal_mask(self.mask, new=mask.shape[1]), _positions(self.mask)[:, -mask.shape[1] :]


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
        dtype: torch dtype of those of its weights that stay as they are (default: float32); here there are none.
    """

    def __init__(self, path: str, dtype: str | None = None):
        super().__init__()
        self.path = path
        self.model = self.prepare(load_causal_lm(path, dtype))
        if any(p.requires_grad and p.dtype != torch.float32 for p in self.model.parameters()):
            # ESPnet would train it in --train_dtype, and decoding round what was learned.
            raise ValueError(
                f"llm dtype={dtype!r} is for weights that stay frozen (llm: frozen or lora); leave it out of llm: full"
            )
        self._sight = Sight(self.model.config)
        self._suits = suits(self.model)
        # Not whatever is frozen later (ESPnet's --freeze_param): those weights may differ from the ones at the path.
        self._at_path = {name for name, p in _by_all_names(self) if not p.requires_grad}
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

    @property
    def depth(self) -> int:
        """How many layers it has."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @property
    def context(self) -> int | None:
        """Positions that it can take; None where its configuration does not say."""
        return context_length(self.model.config)

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, U) -> (B, U, D_llm)."""
        return self._table(ids)

    def start(self, batch: int, device: torch.device) -> LLMState:
        """An empty cache for ``batch`` rows."""
        # Without the configuration, by which layers with a window would forget what a mask still counts.
        return LLMState(DynamicCache(), torch.zeros(batch, 0, dtype=torch.bool, device=device))

    def seated(self) -> SeatedLLMState:
        """An empty cache with seats for streaming sessions."""
        self._sight.check_seats()
        token = LlamaToken(self.model) if LlamaToken.fits(self.model) else None
        return SeatedLLMState(self.depth, self._sight.limited, token)

    def forward(
        self,
        embeddings: Tensor,
        mask: Tensor,
        state: LLMState | SeatedLLMState | None = None,
        keep: Tensor | int = 0,
        readers: Mapping[int, Reader] = NO_READERS,
    ) -> Tensor:
        """Runs N new positions.

        Args:
            embeddings: (B, N, D_llm).
            mask: (B, N) bool, true at real positions; padding may stand anywhere.
            state: advanced by the call; None for a full pass without cache.
            keep: logits of the last ``keep`` positions, or of the positions in a 1-D tensor; 0 keeps all. (With a
                real vocabulary the logits are by far the largest tensor of a step.)
            readers: what hidden states go through before the layers of these numbers.

        Returns:
            logits (B, kept, V) in float32.
        """
        x = embeddings.to(self.model.dtype)
        options: dict[str, Any]
        if state is None:
            if self._suits and suits_now(self.model):
                return llama_pass(self.model, x, mask, keep, readers).float()
            # Where all layers see all of the text, transformers makes the mask, and none at all if it can.
            seen = self._sight.masks(causal_mask(mask, mask.shape[1]), x.dtype) if self._sight.limited else mask.long()
            options = {"attention_mask": seen, "position_ids": _positions(mask), "use_cache": False}
            return self._run(x, keep, readers, options)
        if not readers and isinstance(state, SeatedLLMState) and (logits := state.one_token(x)) is not None:
            return logits
        allowed, positions = state.enter(mask)
        if self._suits:
            return llama_step(self.model, x, allowed, positions, state.cache, keep, readers).float()
        options = {"attention_mask": self._sight.masks(allowed, x.dtype), "position_ids": positions}
        options |= {"past_key_values": state.cache, "use_cache": True}
        return self._run(x, keep, readers, options)

    def _run(self, x: Tensor, keep: Tensor | int, readers: Mapping[int, Reader], options: dict[str, Any]) -> Tensor:
        """transformers' own forward pass."""
        with self._reading(readers):
            return self.model(inputs_embeds=x, logits_to_keep=keep, **options).logits.float()

    @contextmanager
    def _reading(self, readers: Mapping[int, Reader]) -> Iterator[None]:
        """Meanwhile the layers of these numbers get hidden states that have gone through their reader."""
        if not readers:
            yield
            return
        # An LLM that also sees may have as many layers there.
        modules = self.model.get_decoder().modules()
        lists = (each for each in modules if isinstance(each, nn.ModuleList) and len(each) == self.depth)
        layers = next(lists, None)  # the outermost list of so many is that of the layers
        if layers is None:
            raise ValueError(f"{type(self.model).__name__} has no list of its {self.depth} layers to read speech in")

        def hook(reader: Reader) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
            return lambda _, args: (reader(args[0]), *args[1:])

        handles = [layers[number].register_forward_pre_hook(hook(reader)) for number, reader in readers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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


def _by_all_names(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Tied weights appear under every one of their names, as they do in a state dict."""
    return module.named_parameters(remove_duplicate=False)


def _frozen(module: CausalLM) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in _by_all_names(module) if name in module._at_path}


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
