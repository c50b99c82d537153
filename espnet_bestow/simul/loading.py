"""From names on a command line to sessions."""

from dataclasses import dataclass
from pathlib import Path

from espnet_bestow.evaluate.latency import FRAME_MS
from espnet_bestow.inference import Speech2Text
from espnet_bestow.model_dir import locate
from espnet_bestow.simul.policy_spec import PolicySpec
from espnet_bestow.streaming.listener import Listener
from espnet_bestow.streaming.policies import WaitK, build_policy
from espnet_bestow.streaming.session import Session, SessionOptions


def model_files(name: str) -> tuple[Path, Path]:
    """config.yaml and checkpoint of an experiment, a zip made by stage 14, or a hub tag; or a checkpoint's own."""
    path = Path(name)
    return (path.parent / "config.yaml", path) if path.suffix == ".pth" else locate(name)


def load_model(name: str, device: str = "cpu") -> Speech2Text:
    """What :func:`model_files` finds."""
    return Speech2Text.from_files(*model_files(name), device=device)


def read_context(text: str) -> tuple[int, int]:
    """``70,6`` as frames to the left and to the right."""
    try:
        left, right = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"context {text!r} is not <left>,<right> in frames, e.g. 70,6") from None
    return left, right


@dataclass(frozen=True)
class Hearing:
    """How a model hears; None leaves it to the model."""

    right_context: int | None = None
    """Frames beyond the visible ones, where the encoder is re-computed."""
    context: str | None = None
    """Attention context of a cache-aware encoder."""

    def listener(self, s2t: Speech2Text) -> Listener:
        """The listener of a model.

        Raises:
            ValueError: An option does not fit the model's encoder.
        """
        return s2t.listener(self.right_context, None if self.context is None else read_context(self.context))


class Streamer:
    """A model under one policy; bad options are errors now, not at the first session.

    Args:
        s2t: the model.
        spec: the policy.
        hearing: how the model hears.
        max_tokens: longest answer.
    """

    def __init__(
        self, s2t: Speech2Text, spec: PolicySpec, hearing: Hearing | None = None, max_tokens: int = 200
    ) -> None:
        self.spec = spec
        self.rate = s2t.sample_rate
        self.default_prompt = s2t.default_prompt
        self.policy = build_policy(spec.name, **dict(spec.options))
        self.pool = s2t.pool((hearing or Hearing()).listener(s2t))
        self.options = SessionOptions(max_tokens=max_tokens)

    def open(self, prompt: str) -> Session:
        """A new session in the pool of all sessions from here."""
        return self.pool.open(prompt, self.policy, self.options)

    @property
    def paper_schedule(self) -> tuple[int, int, int] | None:
        """K, L and right context where the paper's way of counting delays applies."""
        listener = self.pool.listener
        if not isinstance(self.policy, WaitK) or listener.hop != FRAME_MS * self.rate / 1000:
            return None
        return self.policy.k, self.policy.step, getattr(listener, "right_context", 0)
