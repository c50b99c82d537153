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


def test_an_empty_mapping_empties():
    assert merge(
        {"model_conf": {"task_weights": {"a": 2.0}, "lsm_weight": 0.1}}, {"model_conf": {"task_weights": {}}}
    ) == {"model_conf": {"task_weights": {}, "lsm_weight": 0.1}}


def test_files_and_options_lie_over_each_other_in_their_order(tmp_path):
    (tmp_path / "a.yaml").write_text("max_epoch: 9\nconnector_conf: {dropout: 0.1}\ninit: größe\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text("max_epoch: 2\n", encoding="utf-8")
    out = tmp_path / "made" / "train.yaml"
    options = " --max_epoch 3 --template plain --connector_conf num_blocks=1 --init_param x.pth:encoder:encoder"
    main(
        [
            f"--config={tmp_path}/a.yaml",
            f"--options={options}",
            f"--config={tmp_path}/b.yaml",
            "--options=",
            f"--output={out}",
        ]
    )
    assert yaml.safe_load(out.read_text(encoding="utf-8")) == {
        "max_epoch": 2,
        "connector_conf": {"dropout": 0.1, "num_blocks": 1},
        "init": "größe",
        "template": "plain",
        "init_param": ["x.pth:encoder:encoder"],
    }


def test_a_setting_is_a_layer(tmp_path):
    (tmp_path / "a.yaml").write_text("policy: wait_k\npolicy_conf: {k: [4, 16]}\n")
    out = tmp_path / "train.yaml"
    main([f"--config={tmp_path}/a.yaml", "--setting=policy_conf.step=2", "--setting=seed=3", f"--output={out}"])
    assert yaml.safe_load(out.read_text()) == {"policy": "wait_k", "policy_conf": {"k": [4, 16], "step": 2}, "seed": 3}
    with pytest.raises(SystemExit, match="'step' is no setting"):
        main(["--setting=step", f"--output={out}"])


@pytest.mark.parametrize("options", ["--learning_rate 1", "--max_epoch many"])
def test_options_that_are_none_are_named(tmp_path, options):
    with pytest.raises(SystemExit, match=f"^error: {options}: "):
        main([f"--options={options}", f"--output={tmp_path}/c.yaml"])


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [1\n", ""])
def test_file_that_is_no_configuration(tmp_path, content):
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(SystemExit, match=r"a\.yaml: not"):
        main([f"--config={tmp_path}/a.yaml", f"--output={tmp_path}/c.yaml"])
