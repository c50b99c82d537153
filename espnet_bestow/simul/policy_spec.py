"""Policies by one word: ``wait_k:k=8,step=2``; several by one word: ``wait_k:k=4/8/12,step=2``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

_FORM = re.compile(r"(?P<name>[a-z_]+)(:(?P<options>[a-z_]+=[^,=\s]+(,[a-z_]+=[^,=\s]+)*))?")


@dataclass(frozen=True)
class PolicySpec:
    """Name and options of a policy, before there is a model to run it with."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = ",".join(f"{name}={_word(value)}" for name, value in self.options)
        return f"{self.name}:{options}" if options else self.name

    @property
    def folder(self) -> str:
        """A name for files: ``wait_k_k8_step2``."""
        return "_".join([self.name, *(f"{name}{_word(value)}" for name, value in self.options)])

    @classmethod
    def parse(cls, text: str) -> "PolicySpec":
        """One policy.

        Raises:
            ValueError: The text has another form, or names several.
        """
        specs = cls.parse_all([text])
        if len(specs) != 1:
            raise ValueError(f"policy {text!r} is {len(specs)} policies, one is needed")
        return specs[0]

    @classmethod
    def parse_all(cls, texts: Sequence[str]) -> list["PolicySpec"]:
        """All policies that the texts name: of ``a/b`` each value, and of several such options each combination."""
        specs: list[PolicySpec] = []
        for text in texts:
            form = _FORM.fullmatch(text)
            if form is None:
                raise ValueError(f"policy {text!r} is not <name> or <name>:<option>=<value>,... (wait_k:k=8,step=2)")
            pairs = [pair.split("=") for pair in (form["options"] or "").split(",") if pair]
            names = [name for name, _ in pairs]
            if repeated := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"policy {text!r} gives {repeated[0]} twice")
            values = [[yaml.safe_load(value) for value in choices.split("/")] for _, choices in pairs]
            specs += [cls(form["name"], tuple(zip(names, chosen, strict=True))) for chosen in product(*values)]
        if len(set(specs)) < len(specs):
            raise ValueError(f"policies {' '.join(texts)}: one of them comes twice")
        return specs


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
