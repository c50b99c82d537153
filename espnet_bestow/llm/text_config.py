"""What the YAML of a text LLM may hold, and the model it describes."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from espnet_bestow.yaml_numbers import with_numbers

# These follow from the tokenizer.
_SUPPLIED = {"vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}


class TextConfigError(ValueError):
    """A key or value of the YAML that cannot be used."""


@dataclass
class TextTrainingConfig:
    """Model and optimisation of a text LLM, as in the YAML."""

    model: dict[str, Any] = field(default_factory=lambda: {"model_type": "llama"})
    """``model_type`` and the keys of that transformers configuration."""
    steps: int = 1000
    batch_size: int = 64
    """Lines per step."""
    lr: float = 2e-3
    warmup_steps: int = 100
    schedule: str = "cosine"
    """After warm-up: ``cosine`` (to 0 at the last step) or ``constant``."""
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    log_interval: int = 50
    """Steps between updates of the progress bar's numbers."""
    eval_interval: int = 250
    """Steps between validations; each also saves the state to resume from."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_interval", "eval_interval"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise TextConfigError(f"{name}={value!r} must be a whole number of at least 1")
        for name in ("lr", "grad_clip"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or value <= 0:
                raise TextConfigError(f"{name}={value!r} must be a number above 0")
        for name in ("weight_decay", "warmup_steps"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or value < 0:
                raise TextConfigError(f"{name}={value!r} must be a number of at least 0")
        if self.schedule not in ("cosine", "constant"):
            raise TextConfigError(f"schedule={self.schedule!r} is not known; known: cosine, constant")


def read_config(path: Path | str) -> TextTrainingConfig:
    """The YAML at ``path``; an unknown key is an error that lists the known ones."""
    content = with_numbers(yaml.safe_load(Path(path).read_text("utf-8"))) or {}
    if not isinstance(content, dict):
        raise TextConfigError(f"{path}: must hold keys and values, not {type(content).__name__}")
    known = [f.name for f in fields(TextTrainingConfig)]
    unknown = sorted(map(str, set(content) - set(known)))
    if unknown:
        raise TextConfigError(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(known)}")
    try:
        return TextTrainingConfig(**content)
    except TextConfigError as error:
        raise TextConfigError(f"{path}: {error}") from error


def model_config(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """transformers configuration of ``options`` for the tokenizer's vocabulary."""
    options = dict(options)
    model_type = options.pop("model_type", None)
    if model_type is None:
        raise TextConfigError("model: model_type is missing, for instance llama or gpt2")
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError as error:
        raise TextConfigError(f"model: model_type={model_type!r} is not a transformers model") from error
    known = (set(default.to_dict()) | set(default.attribute_map)) - _SUPPLIED - {"model_type", "transformers_version"}
    unknown = sorted(set(options) - known)
    if unknown:
        names = ", ".join(sorted(known))
        raise TextConfigError(f"model: unknown key {', '.join(unknown)}; {model_type} knows {names}")
    return AutoConfig.for_model(
        model_type,
        **options,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_model(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A causal LM with random weights."""
    config = model_config(options, tokenizer)
    try:
        return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise TextConfigError(f"model: {str(error).splitlines()[0]}") from error
