"""Scores one decoded test set: read, group by task, measure, write the details."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from espnet_bestow.evaluate.key_text import check_same_keys, read_key_text
from espnet_bestow.evaluate.tally import Score, Tally
from espnet_bestow.evaluate.tasks import metrics_for

DETAIL_COLUMNS = ("id", "task", "ref", "hyp", "scores", "flags")


@dataclass(frozen=True)
class Example:
    """One scored row of a data dir."""

    key: str
    task: str
    ref: str
    hyp: str

    @property
    def flags(self) -> str:
        """What is worth grepping for in the details file."""
        flags = {
            "empty_hyp": not self.hyp,
            "empty_ref": not self.ref,
            "same": self.hyp == self.ref,
        }
        return ",".join(name for name, raised in flags.items() if raised)


@dataclass(frozen=True)
class TaskResult:
    """All metrics of one task on one test set."""

    task: str
    examples: Sequence[Example]
    tallies: Sequence[Tally]
    scores: Sequence[Score]


def read_examples(data_dir: Path, hyp_path: Path, default_task: str) -> list[Example]:
    """Joins hypotheses with `text` and `utt2task` of a data dir; all ids must agree."""
    ref_path, task_path = data_dir / "text", data_dir / "utt2task"
    refs, hyps = read_key_text(ref_path), read_key_text(hyp_path)
    check_same_keys(refs, ref_path, hyps, hyp_path)
    if task_path.exists():
        tasks = read_key_text(task_path)
        check_same_keys(refs, ref_path, tasks, task_path)
    else:
        tasks = dict.fromkeys(refs, default_task)
    for key, task in tasks.items():
        if len(task.split()) != 1:
            raise ValueError(f"{task_path}: {key}: expected one task name, got {task!r}")
    return [Example(key, tasks[key], refs[key], hyps[key]) for key in refs]


def score_examples(examples: Sequence[Example]) -> list[TaskResult]:
    """Measures every task that occurs, with a progress bar on a terminal."""
    by_task: dict[str, list[Example]] = {}
    for example in examples:
        by_task.setdefault(example.task, []).append(example)
    results = []
    for task in tqdm(sorted(by_task), desc="scoring", unit="task", disable=None, leave=False):
        members = by_task[task]
        hyps, refs = [e.hyp for e in members], [e.ref for e in members]
        try:
            tallies = [metric(hyps, refs) for metric in metrics_for(task)]
        except ValueError as error:
            raise ValueError(f"task {task!r} (first id {members[0].key}): {error}") from error
        results.append(TaskResult(task, members, tallies, [t.score() for t in tallies]))
    return results


def write_details(path: Path, results: Sequence[TaskResult]) -> None:
    """Writes one tab-separated line per example, with its own value of every metric."""
    lines = ["\t".join(DETAIL_COLUMNS)]
    for result in results:
        values = np.stack([tally.utterance_values() for tally in result.tallies])
        for i, example in enumerate(result.examples):
            scores = [t.describe(i, v[i]) for t, v in zip(result.tallies, values, strict=True)]
            fields = (example.key, example.task, example.ref, example.hyp)
            row = (*fields, " ".join(scores), example.flags)
            lines.append("\t".join(" ".join(field.split()) for field in row))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
