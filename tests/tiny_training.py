"""A tone corpus, a tiny LLM, and training on them through the real command: what every test of training shares."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from espnet_bestow.corpus.testing import write_tone_corpus
from tests.llm_fixtures import write_llm

CONFIG: dict = {
    "frontend": "default",
    "frontend_conf": {"fs": "16k", "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 80},
    "specaug": None,
    "normalize": "utterance_mvn",
    "encoder": "transformer",
    "encoder_conf": {
        "output_size": 16,
        "attention_heads": 2,
        "linear_units": 32,
        "num_blocks": 1,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    },
    "connector_conf": {"dim": 16, "num_heads": 2, "dropout": 0.0},
    "template": "plain",
    "model_conf": {"ctc_weight": 0.2, "lsm_weight": 0.05},
    "optim": "adamw",
    "optim_conf": {"lr": 0.003},
    "batch_type": "sorted",
    "batch_size": 8,
    "max_epoch": 2,
    "num_workers": 0,
    "log_interval": 1,
    "use_tensorboard": False,
    "use_matplotlib": False,
    "best_model_criterion": [["valid", "loss", "min"]],
    "keep_nbest_models": 1,
}
DATA = (("wav.scp", "speech", "sound"), ("text", "text", "text"), ("prompt", "prompt", "text"))
OPTIONAL = (("src_text", "src_text", "text"), ("utt2task", "task", "text"))


@dataclass
class TinySetup:
    """Where corpus and LLM of a test session lie."""

    root: Path
    data: dict[str, Path] = field(default_factory=dict)
    llm: Path = Path()

    @classmethod
    def write(cls, root: Path) -> "TinySetup":
        """Renders the corpus and writes the LLM."""
        return cls(root, write_tone_corpus(root / "data", utterances=8), write_llm(root / "llm"))

    def config(self, folder: Path, **changes: object) -> Path:
        """A YAML with ``changes`` over CONFIG."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "train.yaml"
        path.write_text(yaml.safe_dump({**CONFIG, "llm_conf": {"path": str(self.llm)}, **changes}))
        return path

    def options(self, config: Path, output_dir: Path, data: dict[str, Path] | None = None) -> list[str]:
        """Arguments of bestow_train."""
        out = ["--config", str(config), "--output_dir", str(output_dir), "--ngpu", "0"]
        for split, folder in (data or self.data).items():
            for file, name, kind in DATA + OPTIONAL:
                if (folder / file).exists():
                    out += [f"--{split}_data_path_and_name_and_type", f"{folder / file},{name},{kind}"]
            out += [f"--{split}_shape_file", str(folder / "utt2num_samples")]
        return out


def environment() -> dict[str, str]:
    """One thread, and this checkout importable."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}


def run_module(module: str, *args: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs ``python -m module`` as a user would."""
    return subprocess.run(
        [sys.executable, "-m", module, *args], env=environment(), capture_output=True, text=True, timeout=timeout
    )


def train(setup: TinySetup, output_dir: Path, *extra: str, **changes: object) -> Path:
    """Trains in this process (imports are paid once); returns the experiment directory."""
    from espnet_bestow.bin.bestow_train import main

    config = setup.config(output_dir.parent / (output_dir.name + "_conf"), **changes)
    main([*setup.options(config, output_dir), *extra])
    return output_dir


def make_vivid(checkpoint: Path, llm: Path, folder: Path) -> None:
    """``folder`` gets the model with its LLM as it was and a louder connector: answers differ between recordings.

    A few epochs teach a tiny LLM nothing but its most frequent token, and then every answer equals every other.
    """
    import torch
    from safetensors.torch import load_file

    weights = torch.load(checkpoint, weights_only=True)
    weights |= {f"llm.model.{name}": value for name, value in load_file(llm / "model.safetensors").items()}
    weights["connector.text_out.weight"] *= 10.0
    weights["connector.speech_in.weight"] *= 5.0
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text((checkpoint.parent / "config.yaml").read_text())
    torch.save(weights, folder / "latest.pth")
