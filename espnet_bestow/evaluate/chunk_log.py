"""simulstream's log: what was written, and how long it took, on every chunk of audio.

One JSON object per line. A recording opens with `{"id": 0, "metadata": {"wav_name": "talk.wav"}}`; each chunk follows
with `id`, `total_audio_processed` and `computation_time` (seconds), `generated_tokens` and `deleted_tokens`. This is
the fuller record: delays and the exact clock of `instances.log` follow from it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espnet_bestow.evaluate.instances import Instance, Unit, units_of
from espnet_bestow.evaluate.latency import computation_aware_clock

# How tokens of a log become text; the names are simulstream's latency units of its `simuleval` detokenizer.
JOINS: dict[str, Callable[[Sequence[str]], str]] = {
    "word": " ".join,
    "char": "".join,
    "spm": lambda tokens: "".join(tokens).replace("\u2581", " ").strip(),
}


@dataclass(frozen=True)
class Chunk:
    """One piece of audio and what came of it.

    Attributes:
        received: seconds of audio so far, this piece included.
        compute: seconds of work on it.
        written: tokens that were written.
        deleted: tokens taken back from the end first (re-translation).
    """

    received: float
    compute: float
    written: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recording:
    """All chunks of one audio file."""

    name: str
    chunks: tuple[Chunk, ...]

    def instance(
        self, index: int, reference: str, source_length: float | None = None, unit: Unit = "word", join: str = "word"
    ) -> Instance:
        """The same recording as an instance: delays, exact clock and compute time in milliseconds.

        Args:
            index: of the instance.
            reference: what should have been written.
            source_length: milliseconds; by default the audio received.
            unit: what a delay is given to.
            join: how tokens become text, a name in `JOINS`.
        """
        if not self.chunks:
            raise ValueError(f"recording {self.name!r} has no chunk")
        clock = computation_aware_clock([c.received for c in self.chunks], [c.compute for c in self.chunks])
        text, last = _last_changes(self, unit, JOINS[join])
        return Instance(
            index=index,
            prediction=text,
            delays=tuple(self.chunks[n].received * 1000 for n in last),
            reference=reference,
            source_length=self.chunks[-1].received * 1000 if source_length is None else source_length,
            source=self.name,
            clock=tuple(float(clock[n]) * 1000 for n in last),
            compute=sum(c.compute for c in self.chunks) * 1000,
        )


def _same_start(a: Sequence[str], b: Sequence[str]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _last_changes(recording: Recording, unit: Unit, join: Callable[[Sequence[str]], str]) -> tuple[str, list[int]]:
    """The final text, and the chunk that wrote each of its units for good."""
    tokens: list[str] = []
    units: list[str] = []
    last: list[int] = []
    for n, chunk in enumerate(recording.chunks):
        if not chunk.deleted and not chunk.written:
            continue
        if chunk.deleted:
            if tuple(tokens[-len(chunk.deleted) :]) != chunk.deleted:
                raise ValueError(
                    f"recording {recording.name!r}, chunk {n}: deletes {list(chunk.deleted)}"
                    f" but {tokens[-len(chunk.deleted) :]} was written last"
                )
            del tokens[-len(chunk.deleted) :]
        kept = _same_start(units, units_of(join(tokens), unit))
        tokens += chunk.written
        now = units_of(join(tokens), unit)
        # A unit that was deleted and written again is as new as one that changed.
        kept = min(kept, _same_start(units, now))
        last = last[:kept] + [n] * (len(now) - kept)
        units = now
    return join(tokens), last


def write_chunk_log(path: Path, recordings: Sequence[Recording]) -> None:
    """Writes a log that simulstream's `score_latency` and `stats` read (detokenizer `simuleval`)."""
    entries: list[dict[str, Any]] = []
    for id_, recording in enumerate(recordings):
        entries.append({"id": id_, "metadata": {"wav_name": recording.name}})
        entries += [
            {
                "id": id_,
                "total_audio_processed": chunk.received,
                "computation_time": chunk.compute,
                "generated_tokens": chunk.written,
                "deleted_tokens": chunk.deleted,
            }
            for chunk in recording.chunks
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(entry, ensure_ascii=False, allow_nan=False) for entry in entries)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _chunk(entry: Mapping[str, Any]) -> Chunk:
    received, compute = entry["total_audio_processed"], entry["computation_time"]
    for name, value in (("total_audio_processed", received), ("computation_time", compute)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name} must be a number, got {value!r}")
    written, deleted = (tuple(map(str, entry[name])) for name in ("generated_tokens", "deleted_tokens"))
    return Chunk(received, compute, written, deleted)


def read_chunk_log(path: Path) -> list[Recording]:
    """Reads a log of simulstream; lines about anything else (loading times) are passed over, as simulstream does."""
    names: dict[Any, str] = {}
    chunks: dict[str, list[Chunk]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if "metadata" in entry:
                names[entry["id"]] = str(entry["metadata"]["wav_name"])
                if names[entry["id"]] in chunks:
                    raise ValueError(f"recording {names[entry['id']]!r} begins a second time")
                chunks[names[entry["id"]]] = []
            elif "id" in entry:
                if entry["id"] not in names:
                    raise ValueError(f"id {entry['id']!r} has no metadata with a wav_name before it")
                chunks[names[entry["id"]]].append(_chunk(entry))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: {error!r} in {line[:80]!r}") from error
    if not chunks:
        raise ValueError(f"{path}: the log holds no recording")
    return [Recording(name, tuple(members)) for name, members in chunks.items()]
