"""Encoders that stream, trained through BestowTask and heard through their listeners."""

import numpy as np
import pytest
import soundfile
import torch

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
