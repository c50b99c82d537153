"""Numbers that YAML 1.1, which PyYAML and so ESPnet read, takes for words: ``8e-4`` lacks the point of ``8.0e-4``."""

import re
from typing import Any

_POINTLESS = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def with_numbers(value: Any) -> Any:
    """``value`` as YAML 1.2 would have read it, whatever is in its lists and mappings."""
    if isinstance(value, dict):
        return {key: with_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_numbers(item) for item in value]
    if isinstance(value, str) and _POINTLESS.fullmatch(value):
        return float(value)
    return value
