"""Whole words from the tokens of any tokenizer, and what guards a session: circles, pauses, policies."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from espnet_bestow.circles import circling
from espnet_bestow.streaming.pauses import Audio, Begin, End, SilenceSegments
from espnet_bestow.streaming.policies import (
    EVERYTHING,
    POLICIES,
    AlignAtt,
    EDAtt,
    HoldN,
    LocalAgreement,
    Offline,
    View,
    WaitK,
    attended,
    build_policy,
)
from espnet_bestow.streaming.words import WordCutter
from espnet_bestow.visibility import wait_k
from tests.llm_fixtures import SENTENCES, write_tokenizer

TEXTS = [
    "heute sieht der kleine hund drei rote vögel im garten",
    "Guten Tag, wie geht's? — «sehr gut» … 3,5 %",
    "我喜欢 Python 很多。今天",
    "ひらがなとカタカナ",
    "สวัสดีครับ ที่นี่",
    "naïve 👩‍🚀 café",
    "a\nb\n\nc",
]


def byte_tokenizer():
    """Byte-level BPE as GPT-2's and Qwen's: characters may be cut into bytes."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=core)


def cut(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids

    def decode(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True).strip()

    cutter = WordCutter(decode)
    early = [unit for token in ids for unit in cutter.add(token)]
    return ids, decode, [*early, *cutter.finish()], len(early)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["byte-level", "SentencePiece-like"])
def test_words_are_the_decoded_text_and_their_tokens_all_tokens(kind, text, tmp_path):
    tokenizer = byte_tokenizer() if kind == "byte-level" else write_tokenizer(tmp_path)
    ids, decode, units, early = cut(tokenizer, text)
    assert "".join(unit.before + unit.text for unit in units) == decode(ids)
    assert early >= len(units) - 1
    covered = sorted({n for unit in units for n in range(unit.tokens.start, unit.tokens.stop)})
    assert covered == list(range(len(covered)))
    if kind == "byte-level":  # the other one has no token for most of these characters, and unknown ones are no text
        assert len(covered) == len(ids)
        assert [unit.text for unit in units if len(unit.text) > 1 and unit.text.isascii()] == [
            word for word in text.split() if len(word) > 1 and word.isascii()
        ]


def test_languages_without_spaces_are_cut_into_characters():
    _, _, units, _ = cut(byte_tokenizer(), "我喜欢 Python 很")
    assert [unit.text for unit in units] == ["我", "喜", "欢", "Python", "很"]
    assert [unit.before for unit in units] == ["", "", "", " ", " "]
    _, _, units, _ = cut(byte_tokenizer(), "ที่นี่")
    assert [unit.text for unit in units] == ["ที่", "นี่"]


def test_a_word_waits_for_the_next_one_a_character_does_not():
    tokenizer = byte_tokenizer()
    cutter = WordCutter(lambda ids: tokenizer.decode(ids).strip())
    said = [unit.text for token in tokenizer("red birds").input_ids for unit in cutter.add(token)]
    assert said == ["red"] and [unit.text for unit in cutter.finish()] == ["birds"]
    cutter = WordCutter(lambda ids: tokenizer.decode(ids).strip())
    assert [unit.text for token in tokenizer("很").input_ids for unit in cutter.add(token)] == ["很"]


def test_circles():
    assert not circling([5] * 5) and circling([1, 5, 5, 5, 5, 5, 5])
    assert circling([1, 2, 1, 2, 1, 2], most=(9, 2)) and not circling([3, 2, 1, 2, 1, 2], most=(9, 2))
    assert circling([7, 1, 2, 3, 1, 2, 3], most=(9, 9, 1))
    assert not circling([1] * 50, most=())


def segments(audio, cuts, silence=0.3):
    """(first sample, samples) of each segment."""
    cutting, found = SilenceSegments(silence, 16000), []
    events = [event for begin in range(0, len(audio), cuts) for event in cutting.take(audio[begin : begin + cuts])]
    for event in [*events, *cutting.end()]:
        if isinstance(event, Begin):
            found.append([event.offset, np.zeros(0, np.float32)])
        elif isinstance(event, Audio):
            found[-1][1] = np.concatenate([found[-1][1], event.samples])
        else:
            assert isinstance(event, End)
    return found


def test_pauses_cut_and_silence_is_forgotten():
    rng = np.random.default_rng(0)
    speech, silence = rng.normal(0, 0.2, 16000).astype(np.float32), np.zeros(16000, np.float32)
    short = silence[:3200]
    audio = np.concatenate([silence, speech, short, speech, silence, silence, speech, 0.0003 * speech])
    found = segments(audio, 1600)
    assert len(found) == 2
    for (offset, samples), (begin, end) in zip(found, ((16000, 51200 + 4800), (83200, 99200 + 4800)), strict=True):
        assert abs(offset - (begin - 3200)) <= 320 and abs(offset + len(samples) - end) <= 320
        assert np.array_equal(samples, audio[offset : offset + len(samples)])
    for cuts in (160, 16000, len(audio)):
        for one, other in zip(segments(audio, cuts), found, strict=True):
            assert one[0] == other[0] and np.array_equal(one[1], other[1])
    assert segments(np.zeros(50000, np.float32), 1000) == []


def view(attention, ended=False):
    return View(len(attention), ended, torch.tensor(attention))


def test_wait_k_is_the_one_of_training():
    policy, index = WaitK(k=3, step=4), torch.arange(10)[None]
    trained = wait_k(index, torch.ones_like(index, dtype=torch.bool), torch.tensor([1000]), torch.tensor([3]), 4)
    assert [policy.frames(n, 0) for n in range(10)] == trained[0].tolist()
    assert policy.frames(2, 3) == policy.frames(5, 0)
    assert [WaitK(1, 1, catch_up=1.5).frames(n, 0) for n in range(7)] == [1, 1, 2, 3, 3, 4, 5]
    assert Offline().frames(0, 0) == EVERYTHING


def test_align_att_reads_while_the_newest_frames_are_attended():
    policy = AlignAtt(threshold=2, step=4, sink=1)
    assert [policy.frames(7, reads) for reads in (0, 1, 2)] == [4, 8, 12]
    assert policy.accepts(view([0.0, 0.6, 0.2, 0.2]))
    assert not policy.accepts(view([0.0, 0.2, 0.6, 0.2]))
    assert policy.accepts(view([0.0, 0.2, 0.6, 0.2], ended=True))
    assert policy.accepts(view([0.7, 0.3, 0.0, 0.0]))  # the sink does not count
    assert not policy.accepts(view([1.0]))
    assert attended(torch.tensor([0.9, 0.1]), 1) == 1 and attended(torch.tensor([0.9]), 1) is None


def test_ed_att_reads_while_the_newest_frames_have_too_much():
    policy = EDAtt(alpha=0.3, newest=2, step=4, sink=1)
    assert policy.accepts(view([0.2, 0.6, 0.1, 0.1]))
    assert not policy.accepts(view([0.2, 0.4, 0.3, 0.1]))
    assert policy.accepts(view([0.2, 0.4, 0.3, 0.1], ended=True))
    assert not policy.accepts(view([0.0, 0.0, 0.0]))  # there is nothing but newest frames


def test_drafts():
    policy = LocalAgreement(n=2)
    assert policy.agreed([[1, 2, 3]]) == 0
    assert policy.agreed([[9], [1, 2, 3, 4], [1, 2, 4, 4]]) == 2
    assert policy.agreed([[1, 2], [1, 2, 3]]) == 2
    assert LocalAgreement(n=3).agreed([[1, 2, 3], [1, 2, 9], [1, 2, 3]]) == 2
    assert HoldN(n=2).agreed([[1, 2, 3]]) == 1 and HoldN(n=2).agreed([[1]]) == 0


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wait_k", {"k": 0}, "wait_k: k=0 must be a whole number >= 1"),
        ("wait_k", {"step": 2.5}, "wait_k: step=2.5 must be a whole number >= 1"),
        ("local_agreement", {"n": 2.5}, "local_agreement: n=2.5 must be a whole number >= 2"),
        ("hold_n", {"n": True}, "hold_n: n=True must be a whole number >= 0"),
        ("wait_k", {"catch_up": 0.5}, "catch_up=0.5 must be >= 1"),
        ("align_att", {"threshold": -1}, "align_att: threshold=-1"),
        ("align_att", {"first": 0}, "align_att: first=0"),
        ("ed_att", {"alpha": 0.0}, r"ed_att: alpha=0.0 must be in \(0, 1\]"),
        ("local_agreement", {"n": 1}, "local_agreement: n=1"),
        ("hold_n", {"step": 0}, "hold_n: step=0"),
        ("hold_n", {"k": 1}, r"policy hold_n: wrong options \['k'\]"),
    ],
)
def test_wrong_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_policy(name, **options)
    assert isinstance(build_policy(name), POLICIES[name])
