"""Options of the agent: ``--bestow-...`` of ``simuleval``, ``bestow_...`` keys of simulstream's YAML."""

import argparse
from dataclasses import MISSING, dataclass, field, fields
from types import SimpleNamespace
from typing import Any

PREFIX = "bestow_"
"""SimulEval accepts abbreviations: an option of ours that begins one of its own would be taken for that one."""

UNITS = {"word": " ", "char": ""}
"""What stands between the units of an answer."""

DTYPES = ("float32", "bfloat16", "float16")


def _option(default: Any, text: str, kind: type = str, **more: Any) -> Any:
    return field(default=default, metadata={"type": kind, "help": text, **more})


@dataclass(frozen=True)
class AgentOptions:
    """How a model is run as an agent."""

    model: str = _option(MISSING, "experiment, checkpoint in one, packed zip or hub repository", required=True)
    prompt: str | None = _option(
        None, "instruction (None: the model's own); --tgt-lang overrides it, see docs/simul.md"
    )
    policy: str = _option("wait_k", "read-write policy with its options: wait_k:k=8,step=2 align_att:threshold=4")
    right_context: int | None = _option(
        None, "frames beyond the visible ones that a re-computed encoder hears (None: its default)", int
    )
    context: str | None = _option(None, "attention context of a cache-aware encoder in frames, e.g. 70,6")
    device: str = _option(None, "torch device (None: SimulEval's --device)")
    dtype: str = _option("float32", "the latter two by autocast", choices=DTYPES)
    unit: str = _option(None, "unit of latency (None: SimulEval's --eval-latency-unit)", choices=tuple(UNITS))

    def __post_init__(self) -> None:
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata.get("choices")
            if choices and value is not None and value not in choices:
                raise ValueError(f"{PREFIX}{each.name}={value!r} is not known; known: {', '.join(choices)}")

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Adds ``--bestow-model`` and so on."""
        for each in fields(AgentOptions):
            name = f"--{PREFIX}{each.name}".replace("_", "-")
            default = None if each.default is MISSING else each.default
            parser.add_argument(name, default=default, **each.metadata)

    @classmethod
    def read(cls, args: argparse.Namespace | SimpleNamespace) -> "AgentOptions":
        """From SimulEval's arguments or simulstream's configuration, which may leave options out.

        Raises:
            ValueError: an option is not known, has a bad value, or the model is missing.
        """
        given = {name.removeprefix(PREFIX): value for name, value in vars(args).items() if name.startswith(PREFIX)}
        if unknown := sorted(set(given) - {each.name for each in fields(cls)}):
            known = " ".join(PREFIX + each.name for each in fields(cls))
            raise ValueError(f"option {PREFIX}{unknown[0]} is not known; known: {known}")
        if given.get("model") is None:
            raise ValueError(f"the agent needs a model: {PREFIX}model")
        # simulstream and SimulEval have names of their own for what these two default to.
        given["device"] = given.get("device") or getattr(args, "device", None) or "cpu"
        given["unit"] = given.get("unit") or getattr(args, "eval_latency_unit", getattr(args, "latency_unit", "word"))
        return cls(**given)
