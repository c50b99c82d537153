"""Every configuration of the mini recipe is complete and builds the model it names."""

import argparse
from pathlib import Path

import pytest
import yaml

from espnet_bestow.bin.bestow_inference import get_parser as inference_parser
from espnet_bestow.bin.merge_configs import merge, read_yaml
from espnet_bestow.corpus.tasks import INSTRUCTIONS
from espnet_bestow.llm.text_config import new_model, read_config
from espnet_bestow.llm.tokenizer import load_tokenizer
from espnet_bestow.task import BestowTask
from tests.egs2.shell import EGS2
from tests.llm_fixtures import write_llm

CONF = EGS2 / "mini" / "bestow1" / "conf"
TRAINING = [CONF / "train_bestow.yaml", *sorted(CONF.glob("tuning/*.yaml"))]


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm"))


def arguments(config: Path, llm: Path) -> argparse.Namespace:
    """What training would see, unknown keys being errors."""
    words = [
        "--config",
        str(config),
        "--output_dir",
        "out",
        "--llm_conf",
        f"path={llm}",
        "--tasks",
        *INSTRUCTIONS,
        "sqa",
    ]
    return BestowTask.get_parser().parse_args(words)


@pytest.mark.parametrize("config", TRAINING, ids=lambda path: path.stem)
def test_training_configuration_builds(config, llm):
    args = arguments(config, llm)
    model = BestowTask.build_model(args)
    size = sum(parameter.numel() for parameter in model.encoder.parameters())
    # Of one size class, or a comparison of encoders would compare sizes.
    assert 0.7e6 < size < 4.5e6
    name = config.stem.removeprefix("train_bestow").strip("_") or "streaming_fastconformer"
    assert name in (args.encoder, args.connector)


def test_tuning_examples_differ_in_encoder_or_connector_alone():
    base = read_yaml(CONF / "train_bestow.yaml")
    encoder = {"encoder", "encoder_conf", "preencoder", "preencoder_conf"}
    connector = {"connector", "connector_conf", "model_conf"}
    for path in CONF.glob("tuning/*.yaml"):
        other = read_yaml(path)
        differing = {key for key in base.keys() | other.keys() if base.get(key) != other.get(key)}
        allowed = connector if "connector" in differing else encoder
        assert {"connector_conf", "encoder_conf"} & allowed <= differing <= allowed, path
        if "model_conf" in differing:  # it has no attention to teach
            assert base["model_conf"] == other["model_conf"] | {"alignment_weight": 0.5}


def test_ctc_configuration_trains_the_encoder_alone(llm, tmp_path):
    merged = merge(read_yaml(CONF / "train_bestow.yaml"), read_yaml(CONF / "train_ctc.yaml"))
    path = tmp_path / "ctc.yaml"
    path.write_text(yaml.safe_dump(merged))
    args = arguments(path, llm)
    model = BestowTask.build_model(args)
    assert model.llm is None
    assert model.ctc is not None
    # Stage 11 starts from this checkpoint by name.
    assert ["valid", "loss", "min"] in [list(c) for c in args.best_model_criterion]


def test_asr_configuration_trains_the_same_model(llm, tmp_path):
    merged = merge(read_yaml(CONF / "train_bestow.yaml"), read_yaml(CONF / "train_asr.yaml"))
    path = tmp_path / "asr.yaml"
    path.write_text(yaml.safe_dump(merged))
    args = arguments(path, llm)
    whole = BestowTask.build_model(arguments(CONF / "train_bestow.yaml", llm))
    assert BestowTask.build_model(args).state_dict().keys() == whole.state_dict().keys()
    # Stage 11 starts from this checkpoint by name.
    assert ["valid", "acc", "max"] in [list(c) for c in args.best_model_criterion]


def test_decoding_configuration_has_known_keys():
    data = ["--data_path_and_name_and_type", "wav.scp,speech,sound"]
    words = ["--config", str(CONF / "decode.yaml"), "--output_dir", "o", *data]
    args = inference_parser().parse_args(words)
    assert args.beam_size >= 1


def test_llm_configuration_builds(llm):
    config = read_config(CONF / "train_llm.yaml")
    model = new_model(config.model, load_tokenizer(str(llm)))
    assert model.config.max_position_embeddings >= 256
