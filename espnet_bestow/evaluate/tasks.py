"""Which metrics a task is scored with.

A task name is `<family>` or `<family>_<detail>`: `asr_de`, `ast_en-de`, `sqa_where`, `command`.
"""

from collections.abc import Callable, Sequence
from functools import partial

from espnet_bestow.evaluate import quality
from espnet_bestow.evaluate.tally import Tally

Metric = Callable[[Sequence[str], Sequence[str]], Tally]  # (hyps, refs) -> tally
MetricsOf = Callable[[str], Sequence[Metric]]  # detail, possibly "" -> metrics, main one first

DEFAULT_LANGUAGE = "en"


def _asr(detail: str) -> Sequence[Metric]:
    language = detail or DEFAULT_LANGUAGE
    return partial(quality.wer, language=language), partial(quality.cer, language=language)


def _ast(detail: str) -> Sequence[Metric]:
    source, _, target = detail.partition("-")
    if detail and not (source and target):
        raise ValueError(f"task 'ast_{detail}': expected ast_<source>-<target>, e.g. ast_en-de")
    return partial(quality.bleu, language=target or DEFAULT_LANGUAGE), quality.chrf


def _answers(detail: str) -> Sequence[Metric]:
    return quality.exact_match, quality.rouge_l, quality.rouge_l_stem


def _labels(detail: str) -> Sequence[Metric]:
    return (quality.accuracy,)


_FAMILIES: dict[str, MetricsOf] = {
    "asr": _asr,
    "ast": _ast,
    "sqa": _answers,
    "command": _labels,
    "label": _labels,
}


def register_task(family: str, metrics_of: MetricsOf) -> None:
    """Adds a task family, e.g. `register_task("gender", lambda detail: [quality.accuracy])`."""
    if family in _FAMILIES:
        raise ValueError(f"task {family!r} already has metrics; known: {known_tasks()}")
    _FAMILIES[family] = metrics_of


def known_tasks() -> list[str]:
    """Task families with metrics of their own."""
    return sorted(_FAMILIES)


def metrics_for(task: str) -> Sequence[Metric]:
    """Metrics of a task, the main one first; free-text metrics for a task nobody registered."""
    if task in _FAMILIES:  # a family may itself hold an underscore
        return _FAMILIES[task]("")
    family, _, detail = task.partition("_")
    return _FAMILIES.get(family, _answers)(detail)
