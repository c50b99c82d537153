import pytest

from espnet_bestow.bin.config_values import main

CONFIG = """
encoder: 'größe'  # a remark
normalize: null
model_conf: {ctc_weight: 0.20, lsm_weight: 1.0e-3}
frontend_conf:
    # another
    n_fft: 512
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("encoder", "größe"),
        ("normalize", "null"),
        ("model_conf.ctc_weight", "0.2"),
        ("frontend_conf", '{"n_fft": 512}'),
        ("decoder", ""),
        ("model_conf.teacher_weight", ""),
        ("encoder.name", ""),
    ],
)
def test_a_value_is_a_line(tmp_path, capsys, place, line):
    (tmp_path / "a.yaml").write_text(CONFIG, encoding="utf-8")
    main([str(tmp_path / "a.yaml"), place, "encoder"])
    assert capsys.readouterr().out == f"{line}\ngröße\n"


def test_all_but_some_keys(tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(CONFIG, encoding="utf-8")
    main([str(tmp_path / "a.yaml"), "--but", "encoder", "frontend_conf", "absent"])
    assert capsys.readouterr().out == 'model_conf: {"ctc_weight": 0.2, "lsm_weight": 0.001}\nnormalize: null\n'


def test_a_file_that_is_none_is_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"nothing\.yaml"):
        main([str(tmp_path / "nothing.yaml"), "encoder"])
