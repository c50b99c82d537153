"""The configurations of the recipes for public corpora, with small parts in place of theirs."""

import argparse
from pathlib import Path

import pytest
import torch

from espnet_bestow.bin.bestow_inference import get_parser as inference_parser
from espnet_bestow.bin.merge_configs import read_yaml
from espnet_bestow.connectors import CrossAttentionConnector
from espnet_bestow.encoders import FastConformerEncoder
from espnet_bestow.task import BestowTask
from tests.egs2.shell import EGS2
from tests.egs2.training import layered, training_arguments
from tests.llm_fixtures import write_llm

STREAMED = ("librispeech", "covost2")
RECIPES = (*STREAMED, "dynamic_superb")
SMALL = {
    "encoder_conf": {"output_size": 16, "num_blocks": 1, "attention_heads": 2, "linear_units": 16}
    | {"subsampling_channels": 8},
    "connector_conf": {"dim": 16, "num_heads": 2, "speech_projection": 16},
    "llm_conf": {"rank": 2},
}


def conf(recipe: str, name: str) -> Path:
    return EGS2 / recipe / "bestow1" / "conf" / f"{name}.yaml"


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm"))


def arguments(llm: Path, folder: Path, recipe: str, *over: str) -> argparse.Namespace:
    """What training would see, but for sizes; unknown keys are errors."""
    layers = [conf(recipe, name) for name in ("train_bestow", *over)]
    sizes = [word for option, some in SMALL.items() for key in some for word in (f"--{option}", f"{key}={some[key]}")]
    return training_arguments(layers, folder, llm, ["asr_en", "ast_en-de"], step=4, words=sizes)


@pytest.mark.parametrize("recipe", RECIPES)
def test_offline_model_has_adapters_on_a_frozen_llm(llm, tmp_path, recipe):
    args = arguments(llm, tmp_path, recipe)
    model = BestowTask.build_model(args)
    assert type(model.encoder) is FastConformerEncoder
    assert {name.split("lora_")[-1][0] for name, p in model.llm.named_parameters() if p.requires_grad} == {"A", "B"}
    assert model.ctc is None
    # Stage 12 reads this checkpoint by name.
    assert ["valid", "acc", "max"] in [list(criterion) for criterion in args.best_model_criterion]


def test_librispeech_has_the_size_of_the_papers_table_4():
    config = read_yaml(conf("librispeech", "train_bestow"))
    with torch.device("meta"):
        encoder = FastConformerEncoder(80, **config.get("encoder_conf", {}))
        connector = CrossAttentionConnector(2048, encoder.output_size(), **config["connector_conf"])
    adapters = 22 * config["llm_conf"]["rank"] * (2048 + 2560)  # see tests/test_table4.py
    assert (sum(p.numel() for part in (encoder, connector) for p in part.parameters()) + adapters) // 1_000_000 == 175


@pytest.mark.parametrize("recipe", STREAMED)
@pytest.mark.parametrize("over", [("train_ctc",), ("train_unid", "train_unid_ctc")], ids=lambda names: names[-1])
def test_ctc_trains_an_encoder_alone(llm, tmp_path, recipe, over):
    args = arguments(llm, tmp_path, recipe, *over)
    model = BestowTask.build_model(args)
    assert model.llm is None and model.ctc is not None
    # What follows begins with this checkpoint by name.
    assert ["valid", "loss", "min"] in [list(criterion) for criterion in args.best_model_criterion]


@pytest.mark.parametrize("recipe", STREAMED)
def test_streaming_models_go_on_from_the_offline_one(llm, tmp_path, recipe):
    changes: tuple[tuple[str, ...], ...] = ((), ("train_bidi",), ("train_unid",))
    offline, bidi, unid = (BestowTask.build_model(arguments(llm, tmp_path, recipe, *over)) for over in changes)
    for model in (bidi, unid):
        assert (model.policy.low, model.policy.high, model.policy.step) == (3, 12, 4)
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (offline, bidi, unid)]
    assert shapes[0] == shapes[1]
    # The streaming encoder is another, pre-trained one.
    parts = ("connector.", "llm.")
    kept = [{name: shape for name, shape in each.items() if name.startswith(parts)} for each in shapes]
    assert kept[0] == kept[2]
    assert unid.encoder.context == (70, 13)
    assert type(unid.features.normalize).__name__ == "RunningMVN"


TRAININGS = [(), ("train_ctc",), ("train_bidi",), ("train_unid",), ("train_unid", "train_unid_ctc")]


@pytest.mark.parametrize(
    ("recipe", "over"),
    [("dynamic_superb", ()), *((recipe, over) for recipe in STREAMED for over in TRAININGS)],
    ids=lambda value: value if isinstance(value, str) else (value or ("train_bestow",))[-1],
)
def test_the_learning_rate_falls_until_the_end(recipe, over):
    config = layered([conf(recipe, name) for name in ("train_bestow", *over)])
    steps = config["max_epoch"] * config["num_iters_per_epoch"] // config["accum_grad"]
    # One more would be the first step of a second cycle, at the highest rate.
    assert config["scheduler_conf"]["first_cycle_steps"] == steps + 1
    assert config["scheduler_conf"]["warmup_steps"] < steps / 2


@pytest.mark.parametrize("recipe", RECIPES)
def test_decoding_configuration_has_known_keys(recipe):
    data = ["--data_path_and_name_and_type", "wav.scp,speech,sound"]
    args = inference_parser().parse_args(["--config", str(conf(recipe, "decode")), "--output_dir", "o", *data])
    assert args.beam_size == 5
