"""Low-rank adapters on a frozen LLM, through peft."""

from collections.abc import Sequence

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
                layer.merge(adapter_names=[ADAPTER])
                self.model.set_submodule(name, layer.get_base_layer())
        return self.model


def add_lora(model: PreTrainedModel, config: LoraConfig, share_input: Sequence[str] = ()) -> PreTrainedModel:
    """Freezes ``model`` and puts adapters on its target layers."""
    model.requires_grad_(False)
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = sorted(set(config.target_modules or ()) - names)
    if missing:
        matrices = [name for name, p in model.named_parameters() if name.endswith(".weight") and p.dim() == 2]
        linear = {name.split(".")[-2] for name in matrices}
        raise ValueError(f"lora targets {missing} are not layers of this LLM; its linear layers: {sorted(linear)}")
    inject_adapter_in_model(config, model, ADAPTER)
    # Adapters train in float32 whatever the frozen weights are stored in.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    for parent in list(model.modules()):
        _share_first_matrix([child for name, child in parent.named_children() if name in share_input])
    return model


def _share_first_matrix(layers: list[nn.Module]) -> None:
    adapters = [layer for layer in layers if isinstance(layer, LoraLayer)]
    for layer in adapters[1:]:
        layer.lora_A[ADAPTER] = adapters[0].lora_A[ADAPTER]
