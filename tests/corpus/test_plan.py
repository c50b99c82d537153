from collections import Counter
from random import Random

import pytest

from espnet_bestow.corpus.grammar import english, german
from espnet_bestow.corpus.lm_text import lm_lines
from espnet_bestow.corpus.plan import SentencePool, plan_corpus, plan_split, split_commands
from espnet_bestow.corpus.tiers import TIERS
from espnet_bestow.corpus.voices import SEEN_VOICES, UNSEEN_VOICES


@pytest.fixture(scope="module")
def corpus():
    return plan_corpus(TIERS["mini"], seed=3)


def test_sizes_and_ids(corpus):
    assert {split: len(utterances) for split, utterances in corpus.items()} == {
        "train": 4000,
        "valid": 150,
        "test": 400,
        "test_unseen": 200,
        "test_noisy": 200,
        "test_long": 60,
    }
    ids = [utterance.id for utterances in corpus.values() for utterance in utterances]
    assert len(set(ids)) == len(ids)
    assert sum(TIERS["smoke"].utterances.values()) == 200


def test_no_sentence_is_in_two_splits(corpus):
    owner: dict[str, str] = {}
    for split, utterances in corpus.items():
        side = "train" if split == "train" else "other"
        for utterance in utterances:
            for text in utterance.sentences:
                expected = side if utterance.translation is None else split
                assert owner.setdefault(text, expected) == expected, text


def test_no_sentence_is_said_twice_in_either_language(corpus):
    texts = Counter(
        text
        for utterances in corpus.values()
        for utterance in utterances
        if utterance.translation is not None
        for text in (utterance.transcript, utterance.translation)
    )
    assert max(texts.values()) == 1


def test_voices_are_held_out(corpus):
    assert len(UNSEEN_VOICES) == 4
    assert len(SEEN_VOICES) == 24
    for split, utterances in corpus.items():
        voices = {utterance.voice for utterance in utterances}
        assert voices <= set(UNSEEN_VOICES if split == "test_unseen" else SEEN_VOICES)
    assert {utterance.voice for utterance in corpus["train"]} == set(SEEN_VOICES)


def test_kinds_noise_and_joined_shares(corpus):
    train = corpus["train"]
    commands = [u for u in train if u.translation is None]
    german_speech = [u for u in train if u.delivery.language == "de"]
    assert len(commands) == 800
    assert len(german_speech) == 1600
    assert sum(len(u.sentences) > 1 for u in train) / 4000 == pytest.approx(0.05, abs=0.015)
    assert {u.channel.snr for u in train} == {None, 25, 20, 15, 10}
    assert {u.channel.snr for u in corpus["test_noisy"]} <= set(range(11))
    assert all(len(u.sentences) in (3, 4) for u in corpus["test_long"])
    assert all(0.3 <= pause <= 0.6 for u in corpus["test_long"] for pause in u.pauses)


def test_single_sentences_are_asked_about(corpus):
    for split, utterances in corpus.items():
        asked = [any(example.task == "sqa" for example in u.examples) for u in utterances]
        single = [u.translation is not None and len(u.sentences) == 1 for u in utterances]
        if split == "train":
            assert all(one for one, question in zip(single, asked, strict=True) if question)
            assert sum(asked) / sum(single) == pytest.approx(1 / 3, abs=0.03)
        else:
            assert asked == single, split


def test_the_seed_decides_everything():
    tier = TIERS["smoke"]
    assert plan_corpus(tier, 1) == plan_corpus(tier, 1)
    assert plan_corpus(tier, 1) != plan_corpus(tier, 2)


def test_language_model_text_avoids_the_speech():
    tier, pool = TIERS["smoke"], SentencePool()
    speech = [u for split in tier.utterances for u in plan_split(split, tier, 0, pool)]
    train_commands, other_commands = split_commands(0)
    lines = lm_lines(Random(0), 1000, pool, train_commands)
    assert len(lines) == 1000
    said = {text for u in speech if u.translation for text in (u.transcript, u.translation)}
    assert not said & set(lines)
    assert not {command.text for command in other_commands} & set(lines)
    assert "transcribe the english speech" in lines
    clause = pool.draw(Random(9))
    assert not {english(clause), german(clause)} & set(lines)
