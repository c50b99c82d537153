"""Encoders that stream, trained through BestowTask and heard through their listeners."""

import numpy as np
import pytest
import soundfile
import torch

from espnet_bestow.inference import Speech2Text
from espnet_bestow.model import BestowModel
from espnet_bestow.streaming.cache_aware import CacheAwareListener
from espnet_bestow.streaming.contextual_block import ChunkedListener
from espnet_bestow.task import BestowTask
from tests.tiny_training import train

CACHE_AWARE = {
    "encoder": "streaming_fastconformer",
    "encoder_conf": {
        "output_size": 16,
        "num_blocks": 1,
        "attention_heads": 2,
        "linear_units": 32,
        "subsampling": "conv1d",
        "contexts": [[4, 1], [4, 3]],
        "dropout_rate": 0.0,
    },
}
WHOLE_CONTEXT = {**CACHE_AWARE, "encoder_conf": {**CACHE_AWARE["encoder_conf"], "contexts": ["whole"]}}
CONTEXTUAL_BLOCK = {
    "encoder": "contextual_block_conformer",
    "encoder_conf": {
        "output_size": 16,
        "num_blocks": 1,
        "attention_heads": 2,
        "linear_units": 32,
        "block_size": 8,
        "hop_size": 3,
        "look_ahead": 2,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    },
}
ONE_SECOND = {
    "speech": torch.linspace(-1, 1, 16000)[None] ** 3,
    "speech_lengths": torch.tensor([16000]),
    "prompt": torch.tensor([[5, 6]]),
    "prompt_lengths": torch.tensor([2]),
    "text": torch.arange(5, 12)[None],
    "text_lengths": torch.tensor([7]),
    "src_text": torch.tensor([[5, 6]]),
    "src_text_lengths": torch.tensor([2]),
}


@pytest.mark.parametrize(
    ("encoder", "listener_of"), [(CACHE_AWARE, CacheAwareListener.of), (CONTEXTUAL_BLOCK, ChunkedListener.of)]
)
def test_a_trained_encoder_hears_live_what_it_hears_at_once(tiny, tmp_path, encoder, listener_of):
    specaug = {"apply_time_warp": False, "time_mask_width_range": [0, 5]}
    exp = train(
        tiny,
        tmp_path / "exp",
        max_epoch=1,
        normalize="running_mvn",
        specaug="specaug",
        specaug_conf=specaug,
        policy="wait_k",
        policy_conf={"k": [1, 3], "step": 2},
        model_conf={"ctc_weight": 0.2},
        **encoder,
    )
    model, _ = BestowTask.build_model_from_file(exp / "config.yaml", exp / "1epoch.pth")
    model.eval()
    path = (tiny.data["valid"] / "wav.scp").read_text().split()[1]
    audio = torch.from_numpy(soundfile.read(path, dtype=np.float32)[0])
    with torch.no_grad():
        whole = model.encode(audio[None], torch.tensor([len(audio)])).frames[0]
    listener = listener_of(model)
    ear, frames = listener.open(), 0
    for piece in audio.split(1280):
        ear.push(piece)
        while listener.ready(ear, frames + 1):
            frames += 1
        listener.hear([(ear, frames)])
    assert frames > 1
    ear.end()
    torch.testing.assert_close(listener.hear([(ear, 1000)])[0], whole, rtol=0, atol=1e-5)


def visible_of(model, monkeypatch):
    """What every following step of the model gets as ``visible``."""
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(model, "step", lambda *args: seen.append(args[2]) or BestowModel.step(model, *args))
    return seen


@pytest.mark.parametrize(
    ("encoder", "normalize", "waited", "shown"),
    [
        (CACHE_AWARE, "running_mvn", (1, 2, 3, 4, 5), (2, 2, 4, 4, 6)),
        (CONTEXTUAL_BLOCK, "running_mvn", (1, 6, 7, 9, 10), (6, 6, 9, 9, 12)),
        (CACHE_AWARE, "utterance_mvn", (1, 2, 3, 4, 5), (1, 2, 3, 4, 5)),  # recomputed: frame by frame
        (WHOLE_CONTEXT, "running_mvn", (1, 2, 3, 4, 5), (1, 2, 3, 4, 5)),  # recomputed, too
    ],
)
def test_training_sees_what_sessions_show(tiny, tmp_path, monkeypatch, encoder, normalize, waited, shown):
    conf = {"policy": "wait_k", "policy_conf": {"k": 1, "step": 1}}
    exp = train(tiny, tmp_path / "exp", max_epoch=1, normalize=normalize, **conf, **encoder)
    s2t = Speech2Text.from_files(exp / "config.yaml", exp / "1epoch.pth")
    model, chunks = s2t.model, s2t.listener().chunks
    assert tuple(map(chunks.whole, waited)) == shown
    seen = visible_of(model, monkeypatch)
    with torch.no_grad():
        model(**ONE_SECOND)
        length = int(model.encode(ONE_SECOND["speech"], ONE_SECOND["speech_lengths"]).lengths)
    assert seen[-1].tolist() == [[0, *(min(chunks.whole(n + 1), length) for n in range(7))]]


def test_training_sees_the_chunks_that_were_drawn(tiny, tmp_path, monkeypatch):
    conf = {"policy": "wait_k", "policy_conf": {"k": 1, "step": 1}, "normalize": "running_mvn"}
    exp = train(tiny, tmp_path / "exp", max_epoch=1, **conf, **CACHE_AWARE)
    model, _ = BestowTask.build_model_from_file(exp / "config.yaml", exp / "1epoch.pth")
    seen = visible_of(model, monkeypatch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(12):
            model.train()(**ONE_SECOND)
    assert {tuple(v[0, 1:5].tolist()) for v in seen} == {(2, 2, 4, 4), (4, 4, 4, 4)}
