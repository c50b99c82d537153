"""Faces towards SimulEval and simulstream: ``simuleval --agent-class espnet_bestow.simul.BestowAgent``.

The agent is imported when it is asked for, so that the rest of this room works without SimulEval.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from espnet_bestow.simul.agent import BestowAgent
    from espnet_bestow.simul.audio_loader import AudioLoader

__all__ = ["AudioLoader", "BestowAgent"]


def __getattr__(name: str) -> Any:
    if name == "BestowAgent":
        from espnet_bestow.simul.agent import BestowAgent

        return BestowAgent
    if name == "AudioLoader":
        from espnet_bestow.simul.audio_loader import AudioLoader

        return AudioLoader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
