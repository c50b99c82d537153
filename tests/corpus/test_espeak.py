"""espeak-ng speech: the same bytes in any order and process, and word times that hold.

The library is GPL-3.0, so it is loaded in worker processes here as everywhere.
"""

import hashlib
import json
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_bestow.bin.bestow_corpus import main
from espnet_bestow.corpus.build import Order, build_corpus, load_renderer
from espnet_bestow.corpus.plan import plan_corpus
from espnet_bestow.corpus.speak import record_utterance
from espnet_bestow.corpus.tiers import TIERS, Tier

GOLDEN = json.loads(Path(__file__).with_name("golden_espeak.json").read_text("utf-8"))
needs_espeak = pytest.mark.skipif(
    find_spec("espeakng_loader") is None, reason="the extra espnet_bestow[corpus] is not installed"
)


def ten_utterances():
    """Breathy voices, Klatt voices, plain ones, and one of each kind of test split."""
    corpus = plan_corpus(TIERS["smoke"], seed=0)
    speakers = ("f2", "f3", "f5", "default", "klatt2", "m3", "andrea")
    first = {u.voice.speaker: u for u in reversed(corpus["train"])}
    others = [corpus[split][0] for split in ("test_unseen", "test_noisy", "test_long")]
    return [first[speaker] for speaker in speakers] + others


def record(directory, utterance):
    path = directory / f"{utterance.id}.wav"
    return record_utterance(utterance, load_renderer("espeak"), path)


def record_all(directory, utterances, workers):
    directory.mkdir()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        recordings = pool.map(partial(record, directory), utterances)
        return {recording.utterance_id: recording for recording in recordings}


def pcm_hashes(directory):
    return {
        path.stem: hashlib.sha256(soundfile.read(path, dtype="int16")[0].tobytes()).hexdigest()
        for path in sorted(directory.iterdir())
    }


@needs_espeak
def test_same_bytes_in_any_order_and_process(tmp_path):
    utterances = ten_utterances()
    record_all(tmp_path / "forward", utterances, workers=2)
    record_all(tmp_path / "backward", utterances[::-1], workers=1)
    hashes = pcm_hashes(tmp_path / "forward")
    assert pcm_hashes(tmp_path / "backward") == hashes
    assert len(set(hashes.values())) == 10
    if platform.machine() == GOLDEN["machine"]:
        assert hashes == GOLDEN["sha256"]


@needs_espeak
def test_word_times_point_at_the_speech(tmp_path):
    long = plan_corpus(TIERS["smoke"], seed=0)["test_long"][:2]
    assert {utterance.delivery.language for utterance in long} == {"en", "de"}
    clean = [replace(u, channel=replace(u.channel, snr=None)) for u in long]
    recordings = record_all(tmp_path / "clean", clean, workers=1)
    for utterance in clean:
        recording = recordings[utterance.id]
        assert " ".join(word.word for word in recording.words) == utterance.transcript
        starts = [word.start for word in recording.words]
        assert starts == sorted(starts)
        assert 8 <= recording.samples / 16000 <= 15
        samples, rate = soundfile.read(tmp_path / "clean" / f"{utterance.id}.wav")
        index = 0
        for sentence, pause in zip(utterance.sentences, utterance.pauses, strict=False):
            index += len(sentence.split())
            onset = recording.words[index].start
            loud = np.abs(samples).max()
            before = samples[round((onset - pause + 0.01) * rate) : round(onset * rate)]
            after = samples[round(onset * rate) : round((onset + 0.3) * rate)]
            assert np.abs(before).max() < 0.01 * loud
            assert np.abs(after).max() > 0.1 * loud


@needs_espeak
def test_only_workers_load_the_library(tmp_path):
    tier = Tier("few", {"train": 4}, lm_lines=10)
    assert build_corpus(Order(tmp_path, tier, workers=1))
    assert "espeakng_loader" not in sys.modules
    assert "espeak" not in Path("/proc/self/maps").read_text()


@needs_espeak
def test_an_unknown_voice_names_the_utterance(tmp_path):
    (utterance, *_) = ten_utterances()
    broken = replace(utterance, delivery=replace(utterance.delivery, variant="nobody"))
    with pytest.raises(RuntimeError, match=f"{utterance.id}.*'nobody'"):
        record_all(tmp_path / "broken", [broken], workers=1)


@needs_espeak
def test_a_length_out_of_reach_names_the_utterance(tmp_path):
    (utterance, *_) = ten_utterances()
    broken = replace(utterance, seconds=(60.0, 61.0))
    with pytest.raises(RuntimeError, match=rf"{utterance.id}.*not within 60.0 to 61.0 s"):
        record_all(tmp_path / "broken", [broken], workers=1)


def test_missing_wheel_names_the_line_to_type(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert main(["--tier", "smoke", "--output_dir", str(tmp_path / "data")]) == 1
    assert "pip install 'espnet_bestow[corpus]'" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
