"""Reading transformers encoders from a directory or the hub, and settling their configuration."""

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging


def check_config_keys(config: Mapping[str, Any], known: Collection[str], encoder: str) -> None:
    """Refuse keys of `encoder_conf: config:` that this encoder would not use."""
    unknown = sorted(set(config) - set(known))
    if unknown:
        raise ValueError(f"{encoder}: unknown key(s) {unknown} in encoder_conf.config; known: {sorted(known)}")


def read_config(source: str) -> PretrainedConfig:
    """The configuration of a checkpoint named by directory or hub id."""
    _check_directory(source)
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise type(error)(
            f"pretrained encoder {source!r}: no directory of that name, "
            f"and no readable configuration on the hub or in it ({_first_line(error)})"
        ) from error


def settle_config(config: PretrainedConfig, wanted: Mapping[str, Any], tunable: Collection[str], source: str) -> None:
    """Write `wanted` into a checkpoint's config; what is not tunable has to agree with it."""
    for key, value in wanted.items():
        found = getattr(config, key)
        if key not in tunable and found != value:
            raise ValueError(
                f"pretrained encoder {source!r} has {key} = {found!r}, the config asks for "
                f"{value!r}; leave it out or choose another checkpoint"
            )
        setattr(config, key, value)


def load_encoder[Model: PreTrainedModel](
    encoder_class: type[Model],
    source: str,
    config: PretrainedConfig,
    key_mapping: dict[str, str] | None = None,
) -> Model:
    """Read the encoder's weights out of a checkpoint that may hold more than the encoder.

    Args:
        encoder_class: The transformers class to build.
        source: Directory or hub id.
        config: The encoder's own configuration.
        key_mapping: Pattern -> replacement, from the checkpoint's names to the encoder's.

    Returns:
        The encoder in float32; ESPnet casts it to its training dtype.
    """
    with _only_errors_logged():
        try:
            loaded: Any = encoder_class.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                attn_implementation="sdpa",
                key_mapping=key_mapping,
                output_loading_info=True,
            )
        except OSError as error:
            raise OSError(f"pretrained encoder {source!r}: weights cannot be read ({_first_line(error)})") from error
    encoder, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"pretrained encoder {source!r} lacks {len(missing)} weights of "
            f"{encoder_class.__name__}, the first is {missing[0]!r}"
        )
    return encoder


def _check_directory(source: str) -> None:
    """Tell a mistyped path apart from a hub id before the network is asked.

    A hub id is `name` or `owner/name`; anything else can only be a path.
    """
    looks_like_path = source.startswith((".", "~", os.sep)) or source.count("/") > 1
    if looks_like_path and not os.path.isdir(source):
        raise FileNotFoundError(f"pretrained encoder {source!r}: no such directory")
    if os.path.isdir(source) and not os.path.isfile(os.path.join(source, "config.json")):
        raise FileNotFoundError(f"pretrained encoder {source!r}: no config.json in this directory")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    # The load report would list every decoder weight that is left behind on purpose.
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
