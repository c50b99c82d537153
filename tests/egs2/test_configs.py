"""Every configuration of the mini recipe is complete and builds the model it names."""

import argparse
from pathlib import Path

import pytest

from espnet_bestow.bin.bestow_inference import get_parser as inference_parser
from espnet_bestow.bin.merge_configs import read_yaml
from espnet_bestow.corpus.tasks import INSTRUCTIONS
from espnet_bestow.llm.text_config import new_model, read_config
from espnet_bestow.llm.tokenizer import load_tokenizer
from espnet_bestow.task import BestowTask
from tests.egs2.shell import EGS2
from tests.egs2.training import training_arguments
from tests.llm_fixtures import write_llm

CONF = EGS2 / "mini" / "bestow1" / "conf"
PARTS_OF_AN_ENCODER = {"preencoder", "preencoder_conf", "encoder", "encoder_conf"}
VARIANTS = sorted(CONF.glob("tuning/*.yaml"))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm"))


def arguments(llm: Path, folder: Path, *over: Path) -> argparse.Namespace:
    """What training would see."""
    return training_arguments([CONF / "train_bestow.yaml", *over], folder, llm, [*INSTRUCTIONS, "sqa"])


@pytest.mark.parametrize("variant", [None, *VARIANTS], ids=lambda path: path.stem if path else "train_bestow")
def test_training_configuration_builds(variant, llm, tmp_path):
    args = arguments(llm, tmp_path, *([variant] if variant else []))
    model = BestowTask.build_model(args)
    size = sum(parameter.numel() for parameter in model.encoder.parameters())
    # Of one size class, or a comparison of encoders would compare sizes.
    assert 0.7e6 < size < 4.5e6
    names = {args.encoder, args.connector, {2: "two_blocks"}.get(args.connector_conf.get("num_blocks"))}
    assert (variant.stem if variant else "streaming_fastconformer") in names


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda path: path.stem)
def test_a_variant_changes_the_encoder_or_the_connector_alone(variant):
    changed = read_yaml(variant)
    if "connector_conf" in changed:
        assert changed.keys() <= {"connector", "connector_conf", "model_conf"}
        # It may have no attention to teach.
        assert changed.get("model_conf", {}).keys() <= {"alignment_weight"}
    else:
        assert {"encoder", "encoder_conf"} <= changed.keys() <= PARTS_OF_AN_ENCODER


def test_ctc_configuration_trains_the_encoder_alone(llm, tmp_path):
    args = arguments(llm, tmp_path, CONF / "train_ctc.yaml")
    model = BestowTask.build_model(args)
    assert model.llm is None
    assert model.ctc is not None
    # Stage 11 starts from this checkpoint by name.
    assert ["valid", "loss", "min"] in [list(c) for c in args.best_model_criterion]


def test_asr_configuration_trains_the_same_model(llm, tmp_path):
    args = arguments(llm, tmp_path, CONF / "train_asr.yaml")
    whole = BestowTask.build_model(arguments(llm, tmp_path))
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
