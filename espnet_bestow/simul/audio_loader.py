"""Audio for SimulEval that is read when it is sent.

SimulEval's own loader reads every file of the test set, three times, into Python lists of floats before it begins: half
an hour of audio takes more than a gigabyte. Use this one by

    simuleval --dataloader bestow --dataloader-class espnet_bestow.simul.AudioLoader ...
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import soundfile
from simuleval.data.dataloader import SpeechToTextDataloader


class AudioFile:
    """Samples of a file, as a sequence that is cut into segments: only the part that is asked for is read.

    Args:
        path: of any format that libsndfile can seek in.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @cached_property
    def frames(self) -> int:
        """Length in samples per channel."""
        return int(soundfile.info(self.path).frames)

    def __len__(self) -> int:
        return self.frames

    def __getitem__(self, part: slice) -> np.ndarray:
        """Float32 (S,), or (S, channels)."""
        first, last, step = part.indices(self.frames)
        if step != 1:
            raise ValueError(f"{self.path}: segments are read with step 1, not {step}")
        samples, _ = soundfile.read(self.path, start=first, stop=last, dtype="float32")
        return samples


class AudioLoader(SpeechToTextDataloader):
    """SimulEval's speech-to-text data with :class:`AudioFile` in place of lists."""

    def preprocess_source(self, source: str | Path) -> AudioFile:  # type: ignore[override]
        """Nothing is read yet, but a file that is not there is an error now."""
        if not Path(source).is_file():
            raise FileNotFoundError(f"source {str(source)!r}: no such audio file (an empty line in --source?)")
        return AudioFile(source)
