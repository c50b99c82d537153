"""What is streamed: the rows of a data directory, by task."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_bestow.datadir import DataDir
from espnet_bestow.datadir.source import AudioSource
from espnet_bestow.datadir.task_prompts import default_prompt


@dataclass(frozen=True)
class Example:
    """One row.

    Attributes:
        index: position among the rows of its task, the same whichever part of them is decoded.
    """

    key: str
    task: str
    index: int
    prompt: str
    reference: str
    source: AudioSource


def wanted(task: str, tasks: Sequence[str]) -> bool:
    """Whether a task, or the family it belongs to (``asr`` of ``asr_en``), is listed."""
    return task in tasks or task.partition("_")[0] in tasks


def read_examples(folder: Path, tasks: Sequence[str], default_task: str = "asr_en") -> list[Example]:
    """Rows of a data directory in its order; those of other tasks are left out.

    Raises:
        ValueError: A row lacks audio or text, or no row has a wanted task.
    """
    data = DataDir.read(folder)
    if problems := data.id_problems():
        raise ValueError(f"{problems[0]} ({len(problems)} such problems)")
    sources, prompts, task_of = data.sources(), data.tables.get("prompt", {}), data.tables.get("utt2task", {})
    examples: list[Example] = []
    seen: dict[str, int] = {}
    for key in data.uids():
        task = task_of.get(key, default_task)
        if not wanted(task, tasks):
            continue
        index = seen[task] = seen.get(task, -1) + 1
        prompt = prompts.get(key) or default_prompt(task)
        examples.append(Example(key, task, index, prompt, data.tables["text"][key], sources[key]))
    if not examples:
        known = " ".join(sorted(set(task_of.values()))) or default_task
        raise ValueError(f"{folder}: no row has a task of {' '.join(tasks)}; there are {known}")
    return examples


def by_task(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples under the names of their tasks, sorted."""
    found: dict[str, list[Example]] = {}
    for example in examples:
        found.setdefault(example.task, []).append(example)
    return dict(sorted(found.items()))


def evenly(examples: Sequence[Example], count: int) -> list[Example]:
    """``count`` examples of each task, spread over all of them; all where there are fewer."""
    chosen: list[Example] = []
    for members in by_task(examples).values():
        few = min(count, len(members))
        chosen += [members[n * len(members) // few] for n in range(few)]
    return chosen
