"""Plots of how rows are read and written, by the command line."""

import shutil

import numpy as np
import pytest
import soundfile

from espnet_bestow.bin.bestow_read_write import get_parser, main, spoken


def command(tiny, model, keys, output):
    options = ["--data_dir", str(tiny.data["train"]), "--policy", "wait_k:k=2,step=2", "--output", str(output)]
    return ["--model", str(model), "--key", *keys, *options]


@pytest.fixture(scope="module")
def keys(tiny):
    return [line.split()[0] for line in (tiny.data["train"] / "wav.scp").read_text("utf-8").splitlines()[:2]]


def test_a_picture_for_every_row(tiny, vivid_experiment, keys, tmp_path, capsys):
    main(command(tiny, vivid_experiment, keys, tmp_path / "plots"))
    written = [tmp_path / "plots" / f"read_write_{key}.png" for key in keys]
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in written]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    main(command(tiny, vivid_experiment, keys[:1], tmp_path / "one.png"))
    assert (tmp_path / "one.png").exists()


def test_what_was_said_is_shown(tiny, vivid_experiment, keys, tmp_path):
    """The data dir's words, or those of a file elsewhere, which must be there."""
    words = command(tiny, vivid_experiment, keys[:1], tmp_path / "plot.png")
    said = spoken(keys[0], get_parser().parse_args(words))
    assert said
    data = shutil.copytree(tiny.data["train"], tmp_path / "data")
    ctm = (data / "ctm").rename(tmp_path / "ctm")
    words[words.index("--data_dir") + 1] = str(data)
    assert spoken(keys[0], get_parser().parse_args(words)) == []
    assert spoken(keys[0], get_parser().parse_args([*words, "--ctm", str(ctm)])) == said
    with pytest.raises(SystemExit, match="nowhere"):
        main([*words, "--ctm", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("chosen", "output", "message"),
    [(("nobody",), "a.png", "has no row 'nobody'"), (None, "a.png", "is one file, but 2 rows are to be drawn")],
)
def test_bad_use_is_one_line(tiny, vivid_experiment, keys, tmp_path, capsys, chosen, output, message):
    with pytest.raises(SystemExit) as stop:
        main(command(tiny, vivid_experiment, chosen or keys, tmp_path / output))
    assert message in f"{stop.value}{capsys.readouterr().err}"


def test_an_empty_answer_does_not_cost_the_other_pictures(tiny, vivid_experiment, keys, tmp_path, capsys):
    data = shutil.copytree(tiny.data["train"], tmp_path / "data")
    soundfile.write(tmp_path / "short.wav", np.full(160, 0.1, np.float32), 16000)  # no frame, so no words
    rows = dict(line.split(maxsplit=1) for line in (data / "wav.scp").read_text("utf-8").splitlines())
    rows[keys[0]] = str(tmp_path / "short.wav")
    (data / "wav.scp").write_text("".join(f"{key} {path}\n" for key, path in rows.items()), "utf-8")
    words = command(tiny, vivid_experiment, keys, tmp_path / "plots")
    words[words.index("--data_dir") + 1] = str(data)
    main(words)
    said = capsys.readouterr()
    assert said.out == f"wrote {tmp_path / 'plots' / f'read_write_{keys[1]}.png'}\n"
    assert f"not drawn: {keys[0]}: the answer under" in said.err
