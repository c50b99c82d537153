import pytest

from espnet_bestow.datadir import TaskError, default_prompt


@pytest.mark.parametrize(
    ("task", "prompt"),
    [
        ("asr", "transcribe the speech"),
        ("asr_en", "transcribe the english speech"),
        ("asr_de", "transcribe the german speech"),
        ("ast_en-de", "translate to german"),
        ("ast_de-en", "translate to english"),
        ("command", "give the command frame"),
    ],
)
def test_known_tasks(task, prompt):
    assert default_prompt(task) == prompt


@pytest.mark.parametrize("task", ["sqa", "ast_en", "ast_en-", "asr_", "", "tts_en"])
def test_tasks_without_a_prompt_of_their_own(task):
    with pytest.raises(TaskError, match=rf"task '{task}' has no default prompt.*known: asr"):
        default_prompt(task)


@pytest.mark.parametrize("task", ["asr_xx", "ast_xx-de", "ast_de-xx"])
def test_unknown_language(task):
    with pytest.raises(TaskError, match="unknown language 'xx'"):
        default_prompt(task)
