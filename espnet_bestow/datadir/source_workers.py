"""Spread work on audio sources over processes such that a pipe runs once, however many parts of it are wanted."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from espnet_bestow.datadir.source import AudioSource, SourceReader
from espnet_bestow.datadir.workers import map_in_processes


class HasSource(Protocol):
    """Work on a source."""

    @property
    def source(self) -> AudioSource:
        """What is to be read."""


def map_sources[Job: HasSource, Result](
    function: Callable[[Job, SourceReader], Result], jobs: Sequence[Job], nj: int, description: str
) -> list[Result]:
    """``function(job, reader)`` in the order of ``jobs``; see ``map_in_processes``.

    All parts of a pipe's output are one process's work, one after the other. Files cost little to open again, and
    one long recording is work for all processes then.
    """
    together: dict[str | int, list[int]] = {}
    for number, job in enumerate(jobs):
        together.setdefault(job.source.location if job.source.is_pipe else number, []).append(number)
    groups = [[jobs[number] for number in numbers] for numbers in together.values()]
    done = map_in_processes(partial(_one_by_one, function), groups, nj, description)
    results = {
        number: result
        for numbers, group in zip(together.values(), done, strict=True)
        for number, result in zip(numbers, group, strict=True)
    }
    return [results[number] for number in range(len(jobs))]


def _one_by_one[Job, Result](function: Callable[[Job, SourceReader], Result], jobs: Sequence[Job]) -> list[Result]:
    reader = SourceReader()  # of these only: what it keeps of a pipe goes when they are done
    return [function(job, reader) for job in jobs]
