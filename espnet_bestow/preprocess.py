"""From what a data dir holds to what the model reads, one utterance at a time (runs in data-loader workers)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from espnet2.train.preprocessor import AbsPreprocessor

from espnet_bestow.audio import mono
from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.prompt import PromptTemplate

SHORTEST = 0.1
"""Seconds; below, frontends and down-sampling encoders fail each in its own way."""


class BestowPreprocessor(AbsPreprocessor):
    """Checks the audio, and turns instruction, answer and transcript into token ids.

    Args:
        train: as in ESPnet; nothing here is random, so both give the same.
        template: prompt template of the LLM.
        default_prompt: instruction of utterances without a ``prompt`` entry.
        tasks: names that ``task`` entries may have; their index is what the model sees.
        encode_transcript: ids of ``src_text``, the CTC target (default: the LLM's tokenizer).
        rate: of the audio, in Hz.
    """

    def __init__(
        self,
        train: bool,
        template: PromptTemplate,
        default_prompt: str,
        tasks: Sequence[str] = (),
        encode_transcript: Callable[[str], list[int]] | None = None,
        rate: int = 16000,
    ):
        super().__init__(train)
        self.template = template
        self.default_prompt = default_prompt
        self.tasks = {name: index for index, name in enumerate(tasks)}
        self.encode_transcript = encode_transcript or template.ids
        self.rate = rate

    def __call__(self, uid: str, data: dict[str, Any]) -> dict[str, np.ndarray]:
        """Speech (S,) or (S, channels), and strings -> arrays."""
        out: dict[str, np.ndarray] = {}
        if "speech" in data:
            out["speech"] = check_length(uid, check_speech(uid, data["speech"]), self.rate)
        prompt = data.get("prompt", self.default_prompt)
        if "text" in data:
            example = self.template.encode(prompt, data["text"], uid)
            out["text"] = np.array(example.answer, dtype=np.int64)
            out["prompt"] = np.array(example.prompt, dtype=np.int64)
        else:
            out["prompt"] = np.array(self.template.encode_prompt(prompt, uid), dtype=np.int64)
        if "src_text" in data:
            out["src_text"] = np.array(self.encode_transcript(data["src_text"]), dtype=np.int64)
        if "task" in data:
            if data["task"] not in self.tasks:
                raise BadUtteranceError(f"utterance {uid!r}: task {data['task']!r} is not one of {sorted(self.tasks)}")
            out["task"] = np.array([self.tasks[data["task"]]], dtype=np.int64)
        return out


def check_speech(uid: str, speech: np.ndarray) -> np.ndarray:
    """Mono float32 samples (S,), or an error that names the utterance and what is wrong."""
    if speech.size == 0:
        raise BadUtteranceError(f"utterance {uid!r}: the audio has 0 samples")
    try:
        return mono(speech, f"utterance {uid!r}: samples")
    except ValueError as error:
        raise BadUtteranceError(str(error)) from None


def check_length(uid: str, samples: np.ndarray, rate: int) -> np.ndarray:
    """samples (S,) as they are, or an error where no encoder would make a frame of them."""
    if len(samples) < SHORTEST * rate:
        raise BadUtteranceError(
            f"utterance {uid!r}: audio of {len(samples)} samples ({len(samples) / rate:.3f} s) is too short; "
            f"at least {SHORTEST} s are needed"
        )
    return samples
