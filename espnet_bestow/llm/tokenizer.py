"""Reading an LLM's tokenizer and facts from a directory or hub id, with errors a person can act on."""

from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase


class LLMNotFoundError(FileNotFoundError):
    """The LLM that a configuration names cannot be loaded."""


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Tokenizer of the LLM at ``path``."""
    try:
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise not_found(path, "tokenizer", error) from error


def load_config(path: str) -> PretrainedConfig:
    """Configuration of the LLM at ``path``."""
    try:
        return AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise not_found(path, "config.json", error) from error


def context_length(config: PretrainedConfig) -> int | None:
    """How many positions an LLM can take; None where its configuration does not say."""
    # A multimodal LLM says it in the part of its configuration that is about text.
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def not_found(path: str, what: str, error: Exception) -> LLMNotFoundError:
    """One line that names the path and what is missing there."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return LLMNotFoundError(
        f"llm path={path!r}: no {what} found; it must be a directory with a transformers causal LM or a hub id "
        f"({reason})"
    )
