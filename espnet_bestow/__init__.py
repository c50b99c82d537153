"""BESTOW speech LLMs for ESPnet.

Importing the package is cheap: torch, espnet2 and transformers are loaded by the modules that need
them, and ``Speech2Text`` only when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet_bestow.inference import Speech2Text

__version__ = "0.1.0"
__all__ = ["Speech2Text", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Speech2Text":
        from espnet_bestow.inference import Speech2Text

        return Speech2Text
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
