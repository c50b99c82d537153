import pytest
import yaml

from espnet_bestow.bin.merge_configs import main, merge


def test_second_wins_and_mappings_are_merged():
    base = {"max_epoch": 6, "model_conf": {"ctc_weight": 0.2, "lsm_weight": 0.1}, "seed": 1}
    over = {"max_epoch": 2, "model_conf": {"ctc_weight": 1.0}}
    assert merge(base, over) == {
        "max_epoch": 2,
        "model_conf": {"ctc_weight": 1.0, "lsm_weight": 0.1},
        "seed": 1,
    }
    assert base["model_conf"]["ctc_weight"] == 0.2


def test_options_of_another_choice_do_not_survive():
    base = {"encoder": "conformer", "encoder_conf": {"num_blocks": 4}, "optim": "adamw"}
    assert merge(base, {"encoder": "vgg_rnn"}) == {"encoder": "vgg_rnn", "optim": "adamw"}
    over = {"encoder": "vgg_rnn", "encoder_conf": {"num_layers": 2}}
    assert merge(base, over)["encoder_conf"] == {"num_layers": 2}
    same = {"encoder": "conformer", "encoder_conf": {"dropout_rate": 0.0}}
    assert merge(base, same)["encoder_conf"] == {"num_blocks": 4, "dropout_rate": 0.0}


def test_files(tmp_path):
    (tmp_path / "a.yaml").write_text("lr: 1.0e-3\nname: größe\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("lr: 2.0e-3\n", encoding="utf-8")
    main([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml"), "--output", str(tmp_path / "c.yaml")])
    merged = yaml.safe_load((tmp_path / "c.yaml").read_text(encoding="utf-8"))
    assert merged == {"lr": 2e-3, "name": "größe"}


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1\n", ""])
def test_file_that_is_no_configuration(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    (tmp_path / "b.yaml").write_text("x: 1\n")
    with pytest.raises(SystemExit, match=r"a\.yaml: not"):
        main([str(tmp_path / f"{n}.yaml") for n in "ab"] + ["--output", str(tmp_path / "c.yaml")])
