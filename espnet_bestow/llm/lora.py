"""Low-rank adapters on a frozen LLM, through peft."""

from collections.abc import Sequence
from dataclasses import replace

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from espnet_bestow.llm.causal_lm import CausalLM

ADAPTER = "default"


class LoRACausalLM(CausalLM):
    """``llm: lora``: the LLM is frozen, small adapters are trained and saved.

    Args:
        path: directory or hub id of the LLM.
        rank: r.
        alpha: scale of the update is alpha / rank (default: rank).
        dropout: on the adapters' input.
        targets: names of the linear layers that get an adapter.
        share_input: these of the targets share their first matrix within a layer. With q, k and v this is the LoRA
            on one fused qkv matrix that the paper's Table 4 counts; the default is peft's, no sharing.
        dtype: torch dtype of the frozen weights (default: float32).
    """

    def __init__(
        self,
        path: str,
        rank: int = 8,
        alpha: int | None = None,
        dropout: float = 0.0,
        targets: Sequence[str] = ("q_proj", "k_proj", "v_proj"),
        share_input: Sequence[str] = (),
        dtype: str | None = None,
    ):
        self._config = LoraConfig(r=rank, lora_alpha=alpha or rank, lora_dropout=dropout, target_modules=list(targets))
        self._share_input = tuple(share_input)
        super().__init__(path, dtype)

    def prepare(self, model: PreTrainedModel) -> PreTrainedModel:
        """See base class."""
        return add_lora(model, self._config, self._share_input)

    def merged(self) -> PreTrainedModel:
        """Folds the adapters into the weights and removes them; this object is not for training afterwards."""
        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, LoraLayer):
                self._untie(layer.get_base_layer())
                layer.merge(adapter_names=[ADAPTER])
                self.model.set_submodule(name, layer.get_base_layer())
        return self.model

    def _untie(self, adapted: nn.Module) -> None:
        """Gives an adapted output layer weights of its own: the update is not for the embeddings that it shares."""
        if adapted.weight is self._table.weight:
            adapted.weight = nn.Parameter(adapted.weight.detach().clone(), requires_grad=False)
            for config in (self.model.config, self.model.config.get_text_config()):
                config.tie_word_embeddings = False


def add_lora(model: PreTrainedModel, config: LoraConfig, share_input: Sequence[str] = ()) -> PreTrainedModel:
    """Freezes ``model`` and puts adapters on its target layers."""
    model.requires_grad_(False)
    own = set(_language_matrices(model))
    linear = {name.rsplit(".", 1)[-1] for name in own}
    if missing := sorted(set(config.target_modules or ()) - linear):
        raise ValueError(f"lora targets {missing} are not layers of this LLM; its linear layers: {sorted(linear)}")
    # An LLM that also sees has layers of the same names there, which nothing here ever reaches.
    others = [name for name, module in model.named_modules() if _is_matrix(module) and name not in own]
    inject_adapter_in_model(replace(config, exclude_modules=others or None), model, ADAPTER)
    # Adapters train in float32 whatever the frozen weights are stored in.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for parent in list(model.modules()):
        _share_first_matrix([child for name, child in parent.named_children() if name in share_input])
    return model


def _language_matrices(model: PreTrainedModel) -> list[str]:
    """Names of the matrices that text goes through: those of the layers, and the output layer."""
    parts = (model.get_decoder(), model.get_output_embeddings())
    ids = {id(module) for part in parts if part is not None for module in part.modules()}
    return [name for name, module in model.named_modules() if id(module) in ids and _is_matrix(module)]


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def _share_first_matrix(layers: list[nn.Module]) -> None:
    adapters = [layer for layer in layers if isinstance(layer, LoraLayer)]
    for layer in adapters[1:]:
        layer.lora_A[ADAPTER] = adapters[0].lora_A[ADAPTER]
