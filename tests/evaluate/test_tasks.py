import pytest

from espnet_bestow.evaluate import quality, tasks
from espnet_bestow.evaluate.tasks import known_tasks, metrics_for, register_task


def names(task: str) -> list[str]:
    return [metric(["a b"], ["a b"]).metric for metric in metrics_for(task)]


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("asr", ["wer", "cer"]),
        ("asr_de", ["wer", "cer"]),
        ("ast", ["bleu", "chrf"]),
        ("ast_en-de", ["bleu", "chrf"]),
        ("sqa", ["exact_match", "rouge_l", "rouge_l_stem"]),
        ("sqa_where", ["exact_match", "rouge_l", "rouge_l_stem"]),
        ("command", ["accuracy"]),
        ("label_gender", ["accuracy"]),
        ("summarize", ["exact_match", "rouge_l", "rouge_l_stem"]),
    ],
)
def test_metrics_of_a_task(task, expected):
    assert names(task) == expected


def test_language_comes_from_the_task_name():
    refs, hyps = ["twenty three"], ["23"]
    assert metrics_for("asr")[0](hyps, refs).utterance_values() == [0]
    assert metrics_for("asr_en")[0](hyps, refs).utterance_values() == [0]
    assert metrics_for("asr_de")[0](hyps, refs).utterance_values() == [100]
    assert "tok:zh" in metrics_for("ast_en-zh-CN")[0](["你好"], ["你好"]).signature
    assert "tok:13a" in metrics_for("ast_zh-en")[0](["hello"], ["hello"]).signature


@pytest.mark.parametrize("task", ["ast_de", "ast_-de", "ast_en-"])
def test_translation_needs_two_languages(task):
    with pytest.raises(ValueError, match=f"{task}.*ast_<source>-<target>"):
        metrics_for(task)


def test_registered_task(monkeypatch):
    monkeypatch.setattr(tasks, "_FAMILIES", dict(tasks._FAMILIES))
    register_task("noise_type", lambda detail: [quality.accuracy])
    assert names("noise_type") == ["accuracy"]
    assert "noise_type" in known_tasks()
    with pytest.raises(ValueError, match=r"'asr' already has metrics.*noise_type"):
        register_task("asr", lambda detail: [quality.accuracy])
