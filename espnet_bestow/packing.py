"""Turns a finished training into a model folder (see :mod:`.model_dir`)."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_bestow.llm.tokenizer import load_config, load_tokenizer
from espnet_bestow.model_dir import HERE, locate, names_path, read_config, write_meta
from espnet_bestow.task import BestowTask

# Keys that only matter on the machine of the training, and would tell the world its paths.
_TRAINING_ONLY = (
    "config",
    "output_dir",
    "init_param",
    "train_data_path_and_name_and_type",
    "valid_data_path_and_name_and_type",
    "train_shape_file",
    "valid_shape_file",
    "model_conf.teacher",
)

# What of an LLM's directory makes the LLM; training a text LLM leaves more than that in it.
_LLM_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja")
_NOT_LLM = {"history.json", "trainer_state.json", "perplexity.json", "training_args.bin"}


class PackingError(ValueError):
    """A training that cannot be made into a model folder."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    config_file: Path
    model_file: Path
    config: dict[str, Any]

    @classmethod
    def find(cls, exp: Path | str, model_file: str | None = None) -> "Trained":
        """The training in ``exp`` with its best checkpoint, or the named one."""
        if model_file is None:
            config_file, found = locate(exp)
        else:
            config_file, found = Path(exp) / "config.yaml", Path(exp) / model_file
        for path in (config_file, found):
            if not path.is_file():
                raise FileNotFoundError(f"{str(path)!r} does not exist")
        config = read_config(config_file)
        if config.get("model_conf", {}).get("ctc_weight", 0.0) >= 1.0:
            raise PackingError(f"{config_file}: CTC pre-training only; there is no LLM to pack")
        return cls(config_file, found, config)

    @property
    def llm_path(self) -> str:
        """Directory or hub id of the LLM that the training started from."""
        return str(self.config["llm_conf"]["path"])


def write_model_dir(trained: Trained, folder: Path) -> None:
    """Everything that decoding needs, each weight once.

    The weights of a fully trained LLM are in the checkpoint; they become an LLM directory of their
    own. A frozen LLM is copied as it is, or stays a hub id.
    """
    if trained.config["llm"] == "full":
        write_folded(trained, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = _portable(trained.config, folder)
    if Path(trained.llm_path).is_dir():
        _copy_llm(Path(trained.llm_path), folder / "llm")
        config["llm_conf"]["path"] = f"{HERE}/llm"
    else:
        load_config(trained.llm_path)  # neither directory nor hub id: says so
    shutil.copyfile(trained.model_file, folder / trained.model_file.name)
    _finish(config, folder, trained.model_file.name)


def write_folded(trained: Trained, folder: Path) -> None:
    """The LLM with all it learned as a plain transformers directory, the rest as a checkpoint.

    Adapters are folded into the weights they adapt. The configuration names the LLM as frozen.
    """
    model, _ = BestowTask.build_model_from_file(trained.config_file, trained.model_file)
    assert model.llm is not None  # Trained.find refuses trainings without
    folder.mkdir(parents=True, exist_ok=True)
    config = _portable(trained.config, folder)
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("llm.")}
    torch.save(state, folder / trained.model_file.name)
    model.llm.merged().save_pretrained(folder / "llm")
    load_tokenizer(trained.llm_path).save_pretrained(folder / "llm")
    dtype = trained.config["llm_conf"].get("dtype")
    config["llm"] = "frozen"
    config["llm_conf"] = {"path": f"{HERE}/llm"} | ({"dtype": dtype} if dtype else {})
    _finish(config, folder, trained.model_file.name)


def _finish(config: dict[str, Any], folder: Path, checkpoint: str) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    write_meta(folder, "config.yaml", checkpoint)


def _copy_llm(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for pattern in _LLM_FILES:
        for file in source.glob(pattern):
            if file.name not in _NOT_LLM:
                shutil.copyfile(file, target / file.name)


def _portable(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with every file it names, the LLM's aside, copied to ``folder``."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if key in _TRAINING_ONLY:
            continue
        if key == "llm_conf":
            out[key] = dict(value)
        elif key.endswith("_conf") and isinstance(value, dict):
            part = key.removesuffix("_conf")
            kept = {k: v for k, v in value.items() if f"{key}.{k}" not in _TRAINING_ONLY}
            out[key] = {k: _bring(f"{key}.{k}", v, folder / part) for k, v in kept.items()}
        else:
            out[key] = _bring(key, value, folder / key)
    return out


def _bring(key: str, value: Any, target: Path) -> Any:
    """Copies what a path-valued entry names into ``target`` and returns its new name."""
    if not isinstance(value, str) or not names_path(key):
        return value
    source = Path(value)
    copy = target / source.name
    if source.is_dir():
        shutil.copytree(source, copy, dirs_exist_ok=True)
    elif source.is_file():
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    elif key.endswith("_file"):
        raise PackingError(f"{key}: {value!r} does not exist; run this where the training ran")
    else:
        return value  # a hub id
    return f"{HERE}/{target.name}/{source.name}"
