"""simulstream's log, from ours: merging logs of jobs needs no model to write it."""

from collections import Counter
from collections.abc import Sequence

from espnet_bestow.evaluate.chunk_log import Chunk, Recording
from espnet_bestow.evaluate.instances import Instance

CHUNK_LOG = "simulstream.jsonl"


def recordings_of(instances: Sequence[Instance]) -> list[Recording]:
    """The chunks behind the log lines of a simulator.

    A recording has the name of its file, or that of its row where several rows have one file: in simulstream's log a
    name stands for one text.
    """
    rows = Counter(str(instance.source) for instance in instances)
    return [_recording(i, str(i.source) if rows[str(i.source)] == 1 else str(i.extra["key"])) for i in instances]


def _recording(instance: Instance, name: str) -> Recording:
    texts = [word["text"] for word in instance.extra["words"]]
    chunks, done = [], 0
    for received, compute, count in instance.extra["chunks"]:
        chunks.append(Chunk(received, compute, tuple(texts[done : done + count])))
        done += count
    return Recording(name, tuple(chunks))
