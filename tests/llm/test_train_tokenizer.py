"""A tokenizer trained on one's own text restores it exactly."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from espnet_bestow.bin import train_tokenizer as command
from espnet_bestow.llm.text_lines import TextLineError, read_lines
from espnet_bestow.llm.train_tokenizer import TokenizerTrainingError, train_tokenizer
from espnet_bestow.prompt import PlainTemplate
from tests.llm_fixtures import SENTENCES
from tests.tiny_training import environment

LINES = [*SENTENCES, "süße straße, größe 12!", "two  spaces"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "a.txt").write_text("\n".join(LINES[:3]) + "\n\n", "utf-8")
    (root / "b.txt").write_text("\n".join(LINES[3:]), "utf-8")
    text = ["--text", str(root / "a.txt"), "--text", str(root / "b.txt")]
    command.main([*text, "--vocab_size", "90", "--output_dir", str(root / "out")])
    return root


def test_auto_tokenizer_loads_it_and_every_line_comes_back(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory / "out")
    assert len(tokenizer) == 90
    for line in LINES:
        ids = tokenizer(line, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == line and tokenizer.unk_token_id not in ids
    special = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    assert special == ("<s>", "</s>", "<pad>", "<unk>")


def test_the_plain_template_works_with_it(directory):
    tokenizer = AutoTokenizer.from_pretrained(directory / "out")
    example = PlainTemplate(tokenizer).encode("translate to german", "süße straße")
    assert example.prompt[0] == tokenizer.bos_token_id
    assert tokenizer.convert_ids_to_tokens(example.prompt[-1]) == "\n"
    assert PlainTemplate(tokenizer).decode(example.answer) == "süße straße"


def test_another_process_gives_the_same_bytes(directory):
    args = ["--text", "a.txt", "--text", "b.txt", "--vocab_size", "90", "--output_dir", "again"]
    module = "espnet_bestow.bin.train_tokenizer"
    subprocess.run([sys.executable, "-m", module, *args], cwd=directory, env=environment(), check=True)
    first, second = ((directory / d / "tokenizer.json").read_bytes() for d in ("out", "again"))
    assert first == second


def test_kaldi_files_lose_their_first_column(tmp_path):
    (tmp_path / "text").write_text("utt1 a dog\nutt2\tthe  cat\n", "utf-8")
    assert read_lines([tmp_path / "text"], has_ids=True) == ["a dog", "the  cat"]
    (tmp_path / "text").write_text("utt1 a dog\nutt2\n", "utf-8")
    with pytest.raises(TextLineError, match=r"text:2: no text after the id in 'utt2'"):
        read_lines([tmp_path / "text"], has_ids=True)


def test_a_vocabulary_smaller_than_the_alphabet_is_refused():
    with pytest.raises(TokenizerTrainingError, match=r"vocab_size=10 is too small: .* makes \d+"):
        train_tokenizer(LINES, 10)


@pytest.mark.parametrize("line", ["a ▁ b", "a </s> b"])
def test_text_that_cannot_come_back_is_named(line):
    with pytest.raises(TokenizerTrainingError, match=f"does not restore the line '{line}'"):
        train_tokenizer([*LINES, line], 100)


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "no text in"), (b"\xff\xfe\xfa", "not UTF-8")])
def test_files_without_usable_text_are_one_line(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        command.main(["--text", str(tmp_path / "a.txt"), "--output_dir", str(tmp_path / "out")])
