import pytest

from espnet_bestow.prompt import TEMPLATES, PromptError, build_template
from tests.llm_fixtures import write_llm


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return str(write_llm(tmp_path_factory.mktemp("llm")))


@pytest.mark.parametrize("name", TEMPLATES)
def test_training_and_decoding_see_the_same_prompt(path, name):
    template = build_template(name, path)
    example = template.encode("translate to german", "heute sieht der hund", "u")
    assert example.prompt == template.encode_prompt("translate to german", "u")
    assert example.answer[-1] == template.tokenizer.eos_token_id
    assert template.decode(example.answer) == "heute sieht der hund"


def test_plain_is_start_instruction_line_break(path):
    template = build_template("plain", path)
    ids = template.encode_prompt("translate to german")
    assert ids[0] == template.tokenizer.bos_token_id
    assert template.tokenizer.convert_ids_to_tokens(ids)[-1] == "\n"


def test_chat_is_the_tokenizers_own_template(path):
    template = build_template("chat", path)
    expected = "<|user|>\ntranslate to german</s>\n<|assistant|>\n"
    ids = template.tokenizer(expected, add_special_tokens=False).input_ids
    assert template.encode_prompt("translate to german") == ids


def test_a_tokenizer_without_chat_template_says_so(path):
    template = build_template("chat", path)
    template.tokenizer.chat_template = None
    with pytest.raises(PromptError, match="has no chat template; use template: plain or inst"):
        template.encode_prompt("hello")


def test_inst_has_the_papers_form(path):
    template = build_template("inst", path)
    form = (
        "[INST]\n<<SYS>>\nPlease answer the following based on the previous speech feature.\n<</SYS>>\n\n"
        "translate to german[/INST] "
    )
    assert template.encode_prompt("translate to german") == template.tokenizer(form, add_special_tokens=False).input_ids


def test_text_over_the_context_names_utterance_and_numbers(path):
    template = build_template("plain", path, max_length=16)
    with pytest.raises(PromptError, match=r"utterance 'u7': a prompt of \d+ tokens and an answer of \d+ exceed .* 16"):
        template.encode("translate to german", "the small dog sees three red birds in the garden", "u7")


def test_a_prompt_without_answer_room_is_an_error(path):
    template = build_template("plain", path, max_length=6)
    with pytest.raises(PromptError, match=r"utterance 'u7': the prompt has \d+ tokens and leaves no room"):
        template.encode_prompt("transcribe the english speech in the garden", "u7")


@pytest.mark.parametrize("answer", ["", "  "])
def test_empty_answers_are_errors(path, answer):
    with pytest.raises(PromptError, match="utterance 'u7': the answer text is empty"):
        build_template("plain", path).check("translate", answer, "u7")


def test_long_instructions_are_cut_inside_the_template(path):
    template = build_template("plain", path, max_prompt_tokens=3)
    ids = template.encode_prompt("transcribe the english speech in the garden today")
    newline = template.tokenizer.convert_tokens_to_ids("\n")
    assert len(ids) <= 6 and ids[-1] == newline and ids[0] == template.tokenizer.bos_token_id


def test_the_llms_own_context_is_the_default_limit(path):
    assert build_template("plain", path).max_tokens == 128
    assert build_template("plain", path, max_length=1000).max_tokens == 128


def test_unknown_template_lists_the_known(path):
    with pytest.raises(ValueError, match=r"template='nope' is not known; known: plain, chat, inst"):
        build_template("nope", path)


def test_a_path_that_does_not_exist_is_named():
    with pytest.raises(FileNotFoundError, match="llm path='no/such'"):
        build_template("plain", "no/such")


def test_remembered_instructions_are_bounded_and_cannot_be_spoilt(path, monkeypatch):
    monkeypatch.setattr("espnet_bestow.prompt._REMEMBERED", 2)
    template = build_template("plain", path)
    first = template.encode_prompt("translate to german")
    kept = list(first)
    first.append(0)
    assert template.encode_prompt("translate to german") == kept
    for prompt in "abcdef":
        template.encode_prompt(prompt)
        assert len(template._rendered) <= 2
    assert template.encode_prompt("translate to german") == kept
