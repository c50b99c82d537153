"""One utterance at a time: what reaches the model, and what is refused."""

import argparse

import numpy as np
import pytest

from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.preprocess import BestowPreprocessor, check_speech
from espnet_bestow.prompt import PromptError, build_template
from espnet_bestow.task import _transcript_encoder
from tests.llm_fixtures import write_llm


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return build_template("plain", str(write_llm(tmp_path_factory.mktemp("llm"))))


@pytest.fixture
def preprocess(template):
    return BestowPreprocessor(True, template, "transcribe the english speech", tasks=("asr_en", "sqa"))


SPEECH = np.linspace(-0.5, 0.5, 1600)


def test_everything_becomes_the_ids_of_one_template(preprocess, template):
    data = {"speech": SPEECH, "text": "the dog", "prompt": "translate", "src_text": "the small dog", "task": "sqa"}
    out = preprocess("utt", data)
    example = template.encode("translate", "the dog")
    assert out["prompt"].tolist() == example.prompt
    assert out["text"].tolist() == example.answer and out["text"][-1] == template.end
    assert out["src_text"].tolist() == template.tokenizer("the small dog", add_special_tokens=False).input_ids
    assert out["task"].tolist() == [1]
    assert out["speech"].dtype == np.float32
    assert {out[name].dtype for name in ("prompt", "text", "src_text", "task")} == {np.dtype(np.int64)}


def test_the_default_prompt_serves_utterances_without_one(preprocess, template):
    expected = template.encode_prompt("transcribe the english speech")
    assert preprocess("utt", {"speech": SPEECH, "text": "dog"})["prompt"].tolist() == expected


@pytest.mark.parametrize("prompt", [None, "translate to german"])
def test_decoding_has_no_text(preprocess, template, prompt):
    data = {"speech": SPEECH} | ({} if prompt is None else {"prompt": prompt})
    out = preprocess("utt", data)
    assert set(out) == {"speech", "prompt"}
    assert out["prompt"].tolist() == template.encode_prompt(prompt or preprocess.default_prompt)


def test_stereo_is_averaged():
    stereo = np.stack([SPEECH, np.zeros(1600)], 1)
    np.testing.assert_allclose(check_speech("utt", stereo), SPEECH / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("speech", "message"),
    [
        (np.array([0.0, np.nan, np.inf]), "samples are NaN or infinite: 2 of 3"),
        (np.zeros(0), "the audio has 0 samples"),
        (np.zeros((0, 2)), "the audio has 0 samples"),
        (np.zeros((3, 2, 1)), r"samples have shape \(3, 2, 1\)"),
        (np.zeros((2, 16000)), r"samples have shape \(2, 16000\)"),
        (np.zeros(10, np.uint8), "samples are of type uint8; float or signed integer PCM is needed"),
        (np.zeros(1599), r"audio of 1599 samples \(0.100 s\) is too short; at least 0.1 s"),
    ],
)
def test_bad_audio_names_utterance_and_value(preprocess, speech, message):
    with pytest.raises(BadUtteranceError, match=rf"utterance 'utt-7': .*{message}"):
        preprocess("utt-7", {"speech": speech, "text": "dog"})


def test_what_is_too_short_depends_on_the_rate(template):
    preprocess = BestowPreprocessor(True, template, "p", rate=8000)
    assert len(preprocess("utt", {"speech": SPEECH[:800]})["speech"]) == 800
    with pytest.raises(BadUtteranceError, match=r"'utt': audio of 799 samples \(0.100 s\) is too short"):
        preprocess("utt", {"speech": SPEECH[:799]})


def test_an_unknown_task_lists_the_known(preprocess):
    with pytest.raises(BadUtteranceError, match=r"utterance 'utt': task 'asr_fr' is not one of \['asr_en', 'sqa'\]"):
        preprocess("utt", {"speech": SPEECH, "text": "dog", "task": "asr_fr"})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"text": " "}, "the answer text is empty"),
        ({"text": "dog " * 200}, r"exceed the LLM's context of 128 tokens: 'dog dog"),
        ({"text": "dog", "prompt": "red " * 200}, r"leaves no room for an answer"),
        ({"prompt": "red " * 200}, r"leaves no room for an answer"),
    ],
)
def test_bad_texts_name_the_utterance(preprocess, data, message):
    with pytest.raises(PromptError, match=rf"utterance 'utt': .*{message}"):
        preprocess("utt", {"speech": SPEECH, **data})


@pytest.mark.parametrize("as_file", [True, False], ids=["file", "list of config.yaml"])
def test_a_token_list_makes_the_ctc_targets(template, tmp_path, as_file):
    tokens = ["<blank>", "<unk>", "<space>", "a", "b", "<sos/eos>"]
    (tmp_path / "tokens.txt").write_text("\n".join(tokens) + "\n")
    listed = str(tmp_path / "tokens.txt") if as_file else tokens
    encode = _transcript_encoder(argparse.Namespace(token_list=listed, token_type="char", bpemodel=None, g2p=None))
    out = BestowPreprocessor(True, template, "p", encode_transcript=encode)("utt", {"src_text": "ab az"})
    assert out["src_text"].tolist() == [3, 4, 2, 3, 1]


def test_without_a_token_list_the_llms_tokenizer_serves(template):
    assert _transcript_encoder(argparse.Namespace(token_list=None)) is None
