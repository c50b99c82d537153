"""The rooms of the package, who may enter them, and how a source file's imports are read."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "espnet_bestow"


class Room(NamedTuple):
    """A row of CONTRIBUTING's tables."""

    name: str
    guests: tuple[str, ...]  # packages that few rooms may import


def _rooms_of(table: str) -> tuple[Room, ...]:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]*)\|$", table, re.MULTILINE)
    return tuple(Room(name, tuple(guests.replace(",", " ").split())) for name, guests in rows)


_TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text("utf-8")
_UPSTAIRS, _ALONE = _TEXT.partition("## Where things live")[2].partition("\n## ")[0].split("Rooms that import nothing")

# The rooms of the package; none of the first part imports one that stands above it, the others import none at all.
ROOMS = (*_rooms_of(_UPSTAIRS), *_rooms_of(_ALONE))
HOUSE = tuple(room.name for room in ROOMS)
ALONE = frozenset(room.name for room in _rooms_of(_ALONE))

# Packages that only some rooms may import.
_GUESTS = {guest for room in ROOMS for guest in room.guests}
GUESTS = {guest: frozenset(room.name for room in ROOMS if guest in room.guests) for guest in _GUESTS}

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
    if {target, found.room} <= set(HOUSE) and HOUSE.index(str(target)) < HOUSE.index(found.room):
        return f"{found}: {target} stands above {found.room}"
    return None
