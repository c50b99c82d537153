"""simulstream's log, from ours: merging logs of jobs needs no model to write it."""

from espnet_bestow.evaluate.chunk_log import Chunk, Recording
from espnet_bestow.evaluate.instances import Instance

CHUNK_LOG = "simulstream.jsonl"


def recording_of(instance: Instance) -> Recording:
    """The chunks behind a log line of a simulator."""
    texts = [word["text"] for word in instance.extra["words"]]
    chunks, done = [], 0
    for received, compute, count in instance.extra["chunks"]:
        chunks.append(Chunk(received, compute, tuple(texts[done : done + count])))
        done += count
    return Recording(str(instance.source), tuple(chunks))
