"""What every test needs: one thread, no network, and a reason when something cannot run here."""

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch, transformers or matplotlib are imported. OMP_NUM_THREADS also reaches subprocesses.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

torch.set_num_threads(1)

if TYPE_CHECKING:
    from tests.tiny_training import TinySetup


def missing(marker: str) -> str | None:
    """Why tests with this marker cannot run on this machine; None when they can."""
    if marker == "gpu" and not torch.cuda.is_available():
        return "no CUDA device"
    if marker == "nemo" and importlib.util.find_spec("nemo") is None:
        return "NeMo is not installed"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {marker: reason for marker in ("gpu", "nemo") if (reason := missing(marker))}
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> "TinySetup":
    """Corpus and LLM for tests that train."""
    from tests.tiny_training import TinySetup

    return TinySetup.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_experiment(tiny: "TinySetup", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training of two epochs."""
    from tests.tiny_training import train

    return train(tiny, tmp_path_factory.mktemp("exp") / "bestow")


@pytest.fixture(scope="session")
def vivid_experiment(tiny: "TinySetup", tiny_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model, as :func:`make_vivid` changes it."""
    from tests.tiny_training import make_vivid

    folder = tmp_path_factory.mktemp("vivid")
    make_vivid(tiny_experiment / "valid.loss.best.pth", tiny.llm, folder)
    return folder
