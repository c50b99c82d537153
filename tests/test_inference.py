"""Speech2Text: audio in any form, one answer; models in any form, one clear error."""

import numpy as np
import pytest
import soundfile
import torch
import yaml

import espnet_bestow
from espnet_bestow.audio import AudioError
from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.inference import DecodingOptions, Result, Speech2Text
from espnet_bestow.long_audio import pieces
from espnet_bestow.model_dir import locate
from espnet_bestow.prompt import PromptError
from tests.tiny_training import train

PROMPT = "transcribe the english speech"
GREEDY = DecodingOptions(beam_size=1, max_tokens=8)
BEAM = DecodingOptions(beam_size=3, max_tokens=8)


def tones(rate, seconds=1.0, start=0.0):
    """Three tones below every Nyquist frequency used here, sampled at ``rate``; no edges to ring."""
    t = np.arange(round(rate * seconds)) / rate
    wave = sum(np.sin(2 * np.pi * f * (t + start)) for f in (250, 700, 1900))
    return 0.1 * wave * np.sin(np.pi * t / seconds) ** 2


@pytest.fixture(scope="module")
def s2t(vivid_experiment):
    return Speech2Text.from_pretrained(vivid_experiment, GREEDY)


@pytest.fixture(scope="module")
def expected(s2t):
    return s2t(tones(16000), PROMPT)


def same(a, b, tolerance=2e-3):
    return a.text == b.text and a.tokens == b.tokens and a.score == pytest.approx(b.score, abs=tolerance)


def test_the_model_of_these_tests_listens(s2t, expected):
    """Otherwise none of the comparisons below would say anything."""
    others = [s2t(np.random.default_rng(n).standard_normal(16000) * 0.1, PROMPT) for n in range(3)]
    assert min(abs(expected.score - other.score) for other in others) > 0.05


def test_the_package_offers_it_lazily():
    assert espnet_bestow.Speech2Text is Speech2Text
    assert "Speech2Text" in dir(espnet_bestow)


def test_long_audio_is_answered_piece_by_piece(vivid_experiment, s2t):
    cutting = Speech2Text.from_pretrained(vivid_experiment, DecodingOptions(beam_size=1, max_tokens=8, longest=1.5))
    pause = np.zeros(4800)
    long = np.concatenate([tones(16000), pause, tones(16000, start=0.3), pause, tones(16000, start=0.7)])
    parts = [s2t(part, PROMPT) for part in pieces(long.astype(np.float32), 16000, 1.5)]
    short, found = cutting.batch([tones(16000), long], [PROMPT, PROMPT])
    assert same(short, s2t(tones(16000), PROMPT)) and len(parts) == 3
    assert found.text == " ".join(part.text for part in parts)
    assert found.tokens == [token for part in parts for token in part.tokens]
    assert found.score == pytest.approx(sum(part.score for part in parts), abs=1e-2)
    assert s2t(long, PROMPT).tokens != found.tokens


def test_a_result_unpacks_as_text_tokens_and_score(s2t, expected):
    text, tokens, score = expected
    assert isinstance(expected, Result)
    assert tokens and all(isinstance(token, str) for token in tokens) and len(tokens) <= GREEDY.max_tokens
    ids = s2t.template.tokenizer.convert_tokens_to_ids(tokens)
    assert text == s2t.template.decode(ids) and score < 0.0


def test_a_missing_prompt_is_the_default(s2t):
    default = s2t(tones(16000))
    assert same(default, s2t(tones(16000), s2t.default_prompt))


@pytest.mark.parametrize(
    ("rate", "channels", "suffix"),
    [(16000, 1, "flac"), (8000, 1, "wav"), (44100, 1, "wav"), (48000, 2, "flac"), (16000, 2, "wav")],
)
def test_files_of_any_rate_and_channel_count(s2t, expected, tmp_path, rate, channels, suffix):
    path = tmp_path / f"tones.{suffix}"
    wave = tones(rate)
    # The average is neither channel.
    soundfile.write(path, wave if channels == 1 else np.stack([1.5 * wave, 0.5 * wave], 1), rate, subtype="PCM_24")
    samples = s2t._samples(path, None)
    assert samples.dtype == np.float32 and abs(len(samples) - 16000) <= 1
    np.testing.assert_allclose(samples[:15999], tones(16000)[:15999], atol=2e-3)
    assert same(s2t(str(path), PROMPT), s2t(samples, PROMPT))
    assert same(s2t(str(path), PROMPT), expected, 0.03) or rate != 16000


@pytest.mark.parametrize(
    "convert",
    [
        lambda w: w.astype(np.float32),
        torch.from_numpy,
        lambda w: np.stack([w, w], 1),
        lambda w: torch.from_numpy(w).float().requires_grad_(),
        lambda w: np.round(w * 2**15).astype(np.int16),
        lambda w: torch.from_numpy(np.round(w * 2.0**31).astype(np.int32)),
    ],
    ids=["float32", "tensor", "stereo", "with gradient", "int16", "int32 tensor"],
)
def test_samples_of_any_kind(s2t, expected, convert):
    np.testing.assert_allclose(s2t._samples(convert(tones(16000)), None), tones(16000), atol=2e-5)
    assert same(s2t(convert(tones(16000)), PROMPT), expected, 0.03)


@pytest.mark.parametrize("rate", [8000, 44100])
def test_samples_of_another_rate(s2t, rate):
    samples = s2t._samples(tones(rate), rate)
    np.testing.assert_allclose(samples[:15999], tones(16000)[:15999], atol=2e-3)
    assert same(s2t(tones(rate), PROMPT, sample_rate=rate), s2t(samples, PROMPT))


@pytest.mark.parametrize("options", [GREEDY, BEAM], ids=["greedy", "beam"])
def test_a_batch_answers_as_its_members(vivid_experiment, options):
    s2t = Speech2Text.from_pretrained(vivid_experiment, options)
    audios = [tones(16000), tones(16000, 0.6, start=0.1), tones(16000, 0.8)]
    prompts = [PROMPT, "translate to german", "turn on the light in the kitchen"]
    together = s2t.batch(audios, prompts)
    for result, audio, prompt in zip(together, audios, prompts, strict=True):
        assert same(result, s2t(audio, prompt), 1e-3)


def test_a_batch_needs_a_prompt_each(s2t):
    with pytest.raises(ValueError, match="zip"):
        s2t.batch([tones(16000)], [PROMPT, PROMPT])


def test_a_prompt_without_answer_room_is_named(s2t, tmp_path):
    soundfile.write(tmp_path / "talk.wav", tones(16000), 16000)
    with pytest.raises(PromptError, match=r"talk.wav': the prompt has \d+ tokens and leaves no room"):
        s2t(tmp_path / "talk.wav", "red " * 200)


def test_an_answer_ends_where_the_context_does(vivid_experiment):
    s2t = Speech2Text.from_pretrained(vivid_experiment, DecodingOptions(beam_size=1, max_tokens=1000, circles=()))
    s2t.template.end = -1  # never written: only the context can end the answer
    prompt = "red " * 30
    room = s2t.template.max_tokens - len(s2t.template.encode_prompt(prompt))
    assert len(s2t(tones(16000), prompt).tokens) == room < 128


def test_a_prompt_with_little_room_cuts_only_its_own_answer(vivid_experiment):
    s2t = Speech2Text.from_pretrained(vivid_experiment, DecodingOptions(beam_size=1, max_tokens=20, circles=()))
    s2t.template.end = -1
    room = s2t.template.max_tokens
    long = "red " * 57
    left = room - len(s2t.template.encode_prompt(long))
    audios, prompts = [tones(16000), tones(16000, 0.6), tones(16000, 0.8)], [PROMPT, long, PROMPT]
    results = s2t.batch(audios, prompts)
    assert [len(result.tokens) for result in results] == [20, left, 20] and left < 20
    for result, audio, prompt in zip(results, audios, prompts, strict=True):
        assert same(result, s2t(audio, prompt), 1e-3)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0), "0 samples"),
        (np.array([0.0, np.nan]), "samples are NaN or infinite: 1 of 2"),
        (np.zeros((1, 16000)), r"have shape \(1, 16000\)"),
        (np.full(16000, 128, np.uint8), "are of type uint8; float or signed integer PCM is needed"),
    ],
)
def test_bad_samples_are_named(s2t, samples, message):
    with pytest.raises(BadUtteranceError, match=message):
        s2t(samples, PROMPT)


def test_bad_files_are_named(s2t, tmp_path):
    with pytest.raises(AudioError, match=r"missing.wav: missing file"):
        s2t(tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("words")
    with pytest.raises(AudioError, match=r"text.wav: not an audio file"):
        s2t(tmp_path / "text.wav")


@pytest.mark.parametrize("samples", [1, 100, 600])
def test_audio_too_short_for_the_encoder_is_named(s2t, samples):
    with pytest.raises(BadUtteranceError, match=rf"audio of {samples} samples .* is too short; at least 0.1 s"):
        s2t(np.full(samples, 0.1), PROMPT)


def test_a_pretrained_encoder_alone_cannot_answer(tiny, tmp_path):
    exp = train(tiny, tmp_path / "ctc", model_conf={"ctc_weight": 1.0}, max_epoch=1)
    with pytest.raises(ValueError, match=r"CTC pre-training model.* no LLM to answer with"):
        Speech2Text.from_pretrained(exp)


def test_models_that_are_not_there_are_named(tmp_path, vivid_experiment):
    with pytest.raises(FileNotFoundError, match=r"none.zip' does not exist"):
        locate(tmp_path / "none.zip")
    with pytest.raises(FileNotFoundError, match=r"has no config.yaml; is it the output_dir of a training"):
        locate(tmp_path)
    (tmp_path / "config.yaml").write_text((vivid_experiment / "config.yaml").read_text())
    with pytest.raises(FileNotFoundError, match=r"has none of the checkpoints \['valid.loss.ave.pth'"):
        locate(tmp_path)
    with pytest.raises(FileNotFoundError, match="'nobody/nothing' is neither a directory nor a zip here"):
        locate("nobody/nothing")


def test_an_average_is_preferred_to_the_best_and_that_to_the_latest(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"best_model_criterion": [["valid", "acc", "max"]]}))
    for name in ("latest.pth", "valid.acc.best.pth", "valid.acc.ave.pth"):
        (tmp_path / name).touch()
        assert locate(tmp_path) == (tmp_path / "config.yaml", tmp_path / name)
