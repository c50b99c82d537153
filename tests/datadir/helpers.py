"""Small data directories for tests."""

from pathlib import Path

import numpy as np
import soundfile


def write_audio(path: Path, seconds: float = 0.5, rate: int = 16000, channels: int = 1) -> Path:
    """A file of quiet noise."""
    noise = np.random.default_rng(len(path.name)).normal(0, 0.05, (round(seconds * rate), channels))
    soundfile.write(path, noise, rate)
    return path


def write_files(folder: Path, **files: str) -> Path:
    """Write text files; ``wav_scp`` stands for ``wav.scp``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("wav_scp", "wav.scp")).write_text(content, encoding="utf-8")
    return folder


def lines(path: Path) -> list[str]:
    """The lines of a file."""
    return path.read_text(encoding="utf-8").splitlines()


def counting_pipe(folder: Path, command: str) -> tuple[str, Path]:
    """A pipe as in ``wav.scp``, and the file in which it leaves a line whenever it runs."""
    runs = folder / "runs"
    return f"echo run >> {runs}; {command} |", runs
