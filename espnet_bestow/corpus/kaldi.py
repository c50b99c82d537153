"""Writes a split as a Kaldi-style data directory, one row per (utterance, task)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from espnet_bestow.corpus.plan import Utterance
from espnet_bestow.corpus.rendering import SAMPLE_RATE
from espnet_bestow.corpus.speak import Recording
from espnet_bestow.corpus.tasks import Example


@dataclass(frozen=True)
class Row:
    """One example with its audio."""

    utterance: Utterance
    recording: Recording
    example: Example
    path: Path

    @property
    def key(self) -> str:
        """Row id; starts with the speaker, so that sorting by row sorts by speaker too."""
        return f"{self.utterance.id}-{self.example.task}"


def _ctm(row: Row) -> str:
    return "\n".join(
        f"{row.key} 1 {word.start:.3f} {word.end - word.start:.3f} {word.word}" for word in row.recording.words
    )


def _write(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _speaker_rows(rows: list[Row]) -> list[str]:
    keys: dict[str, list[str]] = {}
    for row in rows:
        keys.setdefault(row.utterance.voice.speaker, []).append(row.key)
    return [f"{speaker} {' '.join(keys[speaker])}" for speaker in sorted(keys)]


def write_data_dir(directory: Path, rows: Iterable[Row]) -> None:
    """Write wav.scp and its companions, sorted by row id."""
    directory.mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: row.key)
    columns = {
        "wav.scp": lambda row: str(row.path),
        "utt2spk": lambda row: row.utterance.voice.speaker,
        "text": lambda row: row.example.answer,
        "prompt": lambda row: row.example.prompt,
        "utt2task": lambda row: row.example.task,
        "src_text": lambda row: row.utterance.transcript,
        "utt2num_samples": lambda row: str(row.recording.samples),
    }
    for name, column in columns.items():
        _write(directory / name, (f"{row.key} {column(row)}" for row in ordered))
    _write(directory / "spk2utt", _speaker_rows(ordered))
    _write(directory / "ctm", map(_ctm, ordered))


def _manifest_line(utterance: Utterance, recording: Recording) -> str:
    entry = {
        "id": utterance.id,
        "language": utterance.delivery.language,
        "domain": "command" if utterance.translation is None else "sentence",
        "voice": utterance.voice.speaker,
        "sex": utterance.voice.sex,
        "rate": recording.rate,
        "pitch": utterance.delivery.pitch,
        "pitch_range": utterance.delivery.pitch_range,
        "snr": utterance.channel.snr,
        "gain": utterance.channel.gain,
        "duration": round(recording.samples / SAMPLE_RATE, 4),
        "sentences": len(utterance.sentences),
        "transcript": utterance.transcript,
        "translation": utterance.translation,
        "reordered": utterance.reordered,
        "tasks": [example.task for example in utterance.examples],
    }
    return json.dumps(entry, ensure_ascii=False)


def write_manifest(path: Path, utterances: Iterable[Utterance], recordings: dict[str, Recording]) -> None:
    """Write one JSON object per utterance, sorted by utterance id."""
    ordered = sorted(utterances, key=lambda utterance: utterance.id)
    _write(path, (_manifest_line(u, recordings[u.id]) for u in ordered))
