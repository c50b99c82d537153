"""The rooms of the package, who may enter them, and how a source file's imports are read."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "espnet_bestow"

# The named rooms from the top of the house down: none of them imports one that stands further left.
HOUSE = (
    *("cli", "bin", "simul", "inference", "task", "espnet_model", "streaming", "evaluate"),
    *("decoding", "model", "connectors", "encoders", "prompt", "llm", "seats", "visibility", "quantize", "ops"),
    "corpus",
)

# Rooms that import nothing else of ours, so that they can be lifted out and used alone.
ALONE = frozenset(
    {
        *("collate", "common_memory", "corpus", "errors", "evaluate", "long_audio", "ops", "process_group", "seats"),
        "visibility",
    }
)

# Third-party packages that only these rooms may import.
GUESTS = {
    "espnet2": frozenset(
        {"bin", "encoders", "espnet_model", "inference", "preprocess", "recordings", "task", "trainer"}
    ),
    "transformers": frozenset({"encoders", "llm", "prompt"}),
    "peft": frozenset({"llm"}),
    "simuleval": frozenset({"simul"}),
    "espeakng_loader": frozenset({"corpus"}),
}

# Private to ESPnet: these moved between releases and will move again.
FORBIDDEN = ("espnet.nets", "espnet2.legacy")


class Import(NamedTuple):
    """One import found in a source file, wherever in the file it stands."""

    file: str  # relative to the package's folder
    line: int
    module: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} imports {self.module}"

    @property
    def room(self) -> str:
        """The room this import is written in."""
        return Path(self.file).with_suffix("").parts[0]


def imports_of(path: Path, root: Path) -> Iterator[Import]:
    """All imports of a file under `root`, the package's folder; relative ones made absolute."""
    file = path.relative_to(root)
    package = (PACKAGE, *file.parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join((*start, node.module) if node.module else start)
            # `from espnet2 import legacy` names a module too, so both spellings are looked at.
            modules = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        else:
            continue
        for module in modules:
            yield Import(str(file), node.lineno, module)


def target_of(found: Import, root: Path) -> str | None:
    """Another room of ours that is imported; None for other packages and for plain attributes."""
    top, *rest = found.module.split(".")
    if top != PACKAGE or not rest or rest[0] == found.room:
        return None
    is_module = (root / rest[0]).is_dir() or (root / f"{rest[0]}.py").is_file()
    return rest[0] if is_module else None


def violation(found: Import, root: Path) -> str | None:
    """What is wrong with an import, in words; None when it is allowed."""
    top = found.module.split(".")[0]
    if any(f"{found.module}.".startswith(f"{name}.") for name in FORBIDDEN):
        return f"{found}: private to ESPnet"
    if top in GUESTS and found.room not in GUESTS[top]:
        return f"{found}: only {sorted(GUESTS[top])} may"
    target = target_of(found, root)
    if target is not None and found.room in ALONE:
        return f"{found}: {found.room} imports nothing else of ours"
    if target in HOUSE and found.room in HOUSE and HOUSE.index(target) < HOUSE.index(found.room):
        return f"{found}: {target} stands above {found.room}"
    return None
