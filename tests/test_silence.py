"""Silence around recordings in training."""

import json

import pytest
import torch

from espnet_bestow.encoders.features import Features
from espnet_bestow.silence import SilenceAround
from espnet_bestow.task import BestowTask
from tests.tiny_training import train

RATE = 100


def noise(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    waveform = torch.randn(len(lengths), max(lengths)) + 10.0  # nowhere silent
    return waveform, torch.tensor(lengths)


@pytest.mark.parametrize(("before", "after"), [(0.2, 1.0), (0.0, 0.5), (0.3, 0.0), (0.0, 0.0)])
def test_recordings_stay_whole_between_silences_of_at_most_these_lengths(before, after):
    torch.manual_seed(0)
    silence = SilenceAround(RATE, before, after)
    waveform, lengths = noise(*[50, 37, 1] * 20)
    found, sizes, silent = silence(waveform, lengths)
    assert found.shape[1] == int(sizes.max()) and found.dtype == waveform.dtype
    counts = zip(sizes.tolist(), lengths.tolist(), silent.tolist(), strict=True)
    for row, original, (size, length, begin) in zip(found, waveform, counts, strict=True):
        loud = (row[:size].abs() > 1.0).nonzero()[:, 0]
        first = int(loud[0])
        assert len(loud) == length and torch.equal(row[first : first + length], original[:length])
        assert first == begin <= before * RATE and size - first - length <= after * RATE
        assert torch.cat([row[:first], row[first + length :]]).abs().le(0.01).all()


def test_about_half_of_them_get_some_and_half_of_that_is_digital_silence():
    torch.manual_seed(0)
    waveform, lengths = noise(*[20] * 400)
    found, sizes, _ = SilenceAround(RATE, 0.0, 2.0)(waveform, lengths)
    longer = sizes > 20
    assert 0.4 < longer.float().mean() < 0.6
    # All recordings are equally long, so what stands behind them is of their own silence even where it is padding.
    digital = (found[longer, 20:] == 0).all(1)
    assert 0.35 < digital.float().mean() < 0.65


def test_only_in_training():
    features = Features(silence=SilenceAround(RATE, 1.0, 1.0))
    waveform, lengths = noise(*[30] * 20)
    features.eval()
    heard, _, silent = features.surround(waveform, lengths)
    assert torch.equal(heard, waveform) and silent.tolist() == [0] * 20
    features.train()
    assert int(features.surround(waveform, lengths)[1].max()) > 30
    assert torch.equal(features(waveform, lengths)[0], waveform)  # it belongs to training, not to features


@pytest.mark.parametrize(("before", "after"), [(-0.1, 1.0), (0.1, -1.0)])
def test_negative_lengths_are_an_error(before, after):
    with pytest.raises(ValueError, match=rf"before={before} and after={after} must be >= 0"):
        SilenceAround(RATE, before, after)


def test_a_configuration_names_it(tiny, tmp_path):
    silence = {"silence": "around", "silence_conf": {"before": 0.1, "after": 0.3}}
    exp = train(tiny, tmp_path / "exp", max_epoch=1, **silence)
    assert json.loads((exp / "history.json").read_text())[0]["train"]["loss"] > 0
    model, _ = BestowTask.build_model_from_file(exp / "config.yaml", exp / "1epoch.pth")
    assert model.features.silence.longest == (1600, 4800)  # samples; the frontend's rate is "16k"


def test_unknown_keys_are_errors(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"silence_conf: unknown key between; \w+ knows \['after', 'before'\]"):
        train(tiny, tmp_path / "exp", silence="around", silence_conf={"between": 1.0})
