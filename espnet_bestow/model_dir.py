"""A trained model as one folder that can be moved, zipped or uploaded as it is.

The folder holds config.yaml, a checkpoint, everything the configuration names, and meta.yaml, which
says which file is which. Paths in such a configuration begin with ``{model_dir}``: the folder that
holds config.yaml, wherever that is by now. (ESPnet writes paths from the working directory into an
unpacked configuration instead; they break when that changes, and directories are not covered.)
"""

import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import yaml

HERE = "{model_dir}"
"""Stands for the configuration's own folder."""

CONFIG_KEY, CHECKPOINT_KEY = "bestow_train_config", "bestow_model_file"
META = "meta.yaml"


class ModelDirError(ValueError):
    """A packed model that cannot be read; names it."""


def names_path(key: str) -> bool:
    """Whether what a configuration says under this key is a file or a directory, or a hub id where there is none."""
    return key.endswith(("path", "file", "pretrained", "bpemodel"))


def read_config(path: Path | str) -> dict[str, Any]:
    """A configuration whose paths lead to what it names, from wherever it is read.

    ``{model_dir}`` is its own folder. A training writes paths as it was told them, from where it ran, which is above
    its output in all recipes.
    """
    path = Path(path)
    content = yaml.safe_load(path.read_text("utf-8"))
    if not isinstance(content, dict):
        raise ModelDirError(f"{path}: must hold keys and values, not {type(content).__name__}")
    folder = path.parent.resolve()
    return {key: _resolve(key, value, folder) for key, value in content.items()}


def _resolve(key: str, value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {name: _resolve(str(name), item, folder) for name, item in value.items()}
    if isinstance(value, list):
        return [_resolve(key, item, folder) for item in value]
    if isinstance(value, str) and value.startswith(HERE + "/"):
        return str(folder) + value.removeprefix(HERE)
    if isinstance(value, str) and value and names_path(key) and not Path(value).is_absolute():
        # Before what has that name where we are: that may be another recipe, with an LLM of its own.
        return next((str(above / value) for above in (folder, *folder.parents) if (above / value).exists()), value)
    return value


def write_meta(folder: Path, config: str, checkpoint: str) -> None:
    """Notes which file of ``folder`` is which, in the form of ESPnet's packed models."""
    meta = {"files": {CHECKPOINT_KEY: checkpoint}, "yaml_files": {CONFIG_KEY: config}}
    (folder / META).write_text(yaml.safe_dump(meta))


def read_meta(folder: Path) -> tuple[Path, Path]:
    """config.yaml and checkpoint of a model folder."""
    try:
        meta = yaml.safe_load((folder / META).read_text("utf-8"))
        files = {**meta["yaml_files"], **meta["files"]}
        found = folder / files[CONFIG_KEY], folder / files[CHECKPOINT_KEY]
    except (KeyError, TypeError, OSError) as error:
        raise ModelDirError(f"model {str(folder)!r}: no {META} that names {CONFIG_KEY} and {CHECKPOINT_KEY}") from error
    for path in found:
        if not path.is_file():
            raise ModelDirError(f"model {str(folder)!r}: {path.name} is missing")
    return found


def unpack(archive: Path) -> Path:
    """Folder with the contents of a zip made by stage 14: ``name.unpacked`` beside ``name.zip``.

    Extracted again only when the archive is newer. Not ``name``: that may well be the experiment.
    """
    folder = archive.with_suffix(".unpacked")
    stamp = folder / META
    if stamp.is_file() and stamp.stat().st_mtime_ns >= archive.stat().st_mtime_ns:
        return folder
    # Extracted beside and renamed, so that a folder of that name is always whole.
    fresh = Path(tempfile.mkdtemp(dir=archive.parent, prefix=f".{folder.name}."))
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(fresh)
        read_meta(fresh)
        (fresh / META).touch()
        shutil.rmtree(folder, ignore_errors=True)
        fresh.chmod(0o755)
        fresh.rename(folder)
    except (zipfile.BadZipFile, ModelDirError) as error:
        reason = "not a zip" if isinstance(error, zipfile.BadZipFile) else "not a packed model"
        raise ModelDirError(f"model {str(archive)!r}: {reason} ({error})") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def locate(name: str | Path) -> tuple[Path, Path]:
    """config.yaml and checkpoint of an experiment directory, a packed zip, or a hub tag."""
    path = Path(name)
    if path.is_dir():
        return read_meta(path) if (path / META).exists() else _from_experiment(path)
    if path.suffix == ".zip":
        if not path.exists():
            raise FileNotFoundError(f"model {str(name)!r} does not exist")
        return read_meta(unpack(path))
    return _from_hub(str(name))


def _from_experiment(folder: Path) -> tuple[Path, Path]:
    if not (folder / "config.yaml").exists():
        raise FileNotFoundError(f"model {str(folder)!r} has no config.yaml; is it the output_dir of a training?")
    config = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    # What is best on validation data comes before what is best on training data.
    order = sorted(config.get("best_model_criterion", []), key=lambda criterion: criterion[0] != "valid")
    criteria = [".".join(criterion[:2]) for criterion in order]
    names = [f"{c}.{kind}.pth" for kind in ("ave", "best") for c in criteria] + ["latest.pth"]
    for candidate in names:
        if (folder / candidate).exists():
            return folder / "config.yaml", folder / candidate
    raise FileNotFoundError(f"model {str(folder)!r} has none of the checkpoints {names}")


def _from_hub(tag: str) -> tuple[Path, Path]:
    """A model uploaded by stage 15: a repository that holds an unpacked stage-14 zip."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(tag))
    except Exception as error:
        raise FileNotFoundError(
            f"model {tag!r} is neither a directory nor a zip here, and no hub repository of that name could be read "
            f"({type(error).__name__})"
        ) from error
    return locate(folder)
