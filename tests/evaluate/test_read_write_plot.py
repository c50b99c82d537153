from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from espnet_bestow.evaluate.emission import SpokenWord
from espnet_bestow.evaluate.read_write_plot import ReadWriteTrace, plot_read_write

TRACE = ReadWriteTrace(
    tokens=["▁der", "▁al", "te", "$5$"],
    visible=[2, 4, 6, 8],
    frames=8,
    attention=np.tril(np.ones((4, 8)), 1),
    consumed=[0.3, 0.4, 0.6, 0.64],
    emitted=[0.35, 0.45, 0.65, 0.9],
    spoken=[SpokenWord("the", 50, 200), SpokenWord("old", 220, 500)],
)


def image(tmp_path, name, trace):
    return imread(plot_read_write(trace, tmp_path / name, "utt1"))[..., :3]


def test_all_that_is_known_is_drawn(tmp_path):
    pixels = image(tmp_path, "a.png", TRACE)
    colours = {tuple(np.round(colour * 255).astype(int)) for colour in pixels.reshape(-1, 3)}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73), (0, 0, 0), (0xE8, 0xE8, 0xE8)} <= colours


def test_what_is_not_known_is_left_out(tmp_path):
    bare = replace(TRACE, attention=None, consumed=(), emitted=(), spoken=())
    pixels = image(tmp_path, "a.png", bare)
    colours = {tuple(np.round(colour * 255).astype(int)) for colour in pixels.reshape(-1, 3)}
    assert (0, 0, 0) in colours
    assert not {(0, 0x72, 0xB2), (0xD5, 0x5E, 0), (0, 0x9E, 0x73)} & colours


def test_a_token_that_saw_nothing_is_blank(tmp_path):
    dark = replace(TRACE, visible=[0, 0, 0, 0], attention=np.zeros((4, 8)))
    assert image(tmp_path, "a.png", dark).shape == image(tmp_path, "b.png", TRACE).shape


def test_plots_are_reproducible(tmp_path):
    first, second = (plot_read_write(TRACE, tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": [], "visible": []}, "nothing to draw in 0 tokens"),
        ({"visible": [1, 2]}, "4 tokens but 2 visible counts"),
        ({"visible": [1, 2, 3, 9]}, "between 0 and 8 frames, got 9"),
        ({"emitted": [0.1]}, "4 tokens but 1 emitted times"),
        ({"attention": np.ones((4, 7))}, r"attention must be \(4, 8\), got \(4, 7\)"),
    ],
)
def test_what_does_not_fit_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TRACE, **change)
