"""Knows what a corpus directory holds, so that a finished corpus is never built twice or mixed."""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from espnet_bestow.corpus.tiers import CONDITIONS

# Raise when the same tier, seed and renderer would give other bytes than before.
CORPUS_VERSION = 5
_DONE, _BUILDING = ".done", ".building"
_OWN_DIRECTORIES = ("audio", "lm", *CONDITIONS)


class CorpusExistsError(RuntimeError):
    """The output directory holds something else, and overwriting it was not asked for."""


@dataclass(frozen=True)
class Identity:
    """What decides every byte of a corpus."""

    tier: str
    seed: int
    renderer: str
    version: int = CORPUS_VERSION


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorpusExistsError(f"{path} is damaged ({error}); use --overwrite") from error
    return dict(content)


def _describe(content: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(content.items()))


def is_finished(directory: Path, identity: Identity, overwrite: bool) -> bool:
    """Tell whether `directory` holds exactly this corpus; another one there is an error."""
    marker = directory / _DONE
    if overwrite or not marker.exists():
        return False
    found, wanted = _read(marker), dataclasses.asdict(identity)
    if found != wanted:
        raise CorpusExistsError(
            f"{directory} holds the corpus of {_describe(found)}, "
            f"not of {_describe(wanted)}; choose another directory or use --overwrite"
        )
    return True


def claim(directory: Path, identity: Identity, overwrite: bool) -> None:
    """Clear what an interrupted (or unwanted) build left behind, and announce this one."""
    own = [directory / name for name in _OWN_DIRECTORIES]
    interrupted = (directory / _BUILDING).exists()
    foreign = [str(path) for path in own if path.exists()]
    if foreign and not (interrupted or overwrite):
        raise CorpusExistsError(
            f"{foreign[0]} exists and was not made by an unfinished build; choose another directory or use --overwrite"
        )
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / _BUILDING, identity)
    (directory / _DONE).unlink(missing_ok=True)
    for path in own:
        if path.exists():
            shutil.rmtree(path)


def finish(directory: Path, identity: Identity) -> None:
    """Announce that the corpus is complete."""
    _write(directory / _BUILDING, identity)
    (directory / _BUILDING).rename(directory / _DONE)


def _write(path: Path, identity: Identity) -> None:
    path.write_text(json.dumps(dataclasses.asdict(identity)) + "\n", encoding="utf-8")
