"""The streaming configurations of the mini recipe, put over its offline one as stages 16 and 17 do."""

import argparse
from pathlib import Path

import pytest

from espnet_bestow.bin.merge_configs import read_yaml
from espnet_bestow.corpus.tasks import INSTRUCTIONS
from espnet_bestow.task import BestowTask
from espnet_bestow.visibility import WaitKPolicy
from tests.egs2.shell import EGS2
from tests.egs2.training import training_arguments
from tests.llm_fixtures import write_llm

CONF = EGS2 / "mini" / "bestow1" / "conf"
EVALUATED = 8  # K of simuleval_policy in bestow.sh


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llm(tmp_path_factory.mktemp("llm"))


def arguments(llm: Path, folder: Path, *names: str) -> argparse.Namespace:
    """What training would see."""
    layers = [CONF / name for name in ("train_bestow.yaml", *names)]
    return training_arguments(layers, folder, llm, [*INSTRUCTIONS, "sqa"])


@pytest.mark.parametrize("name", ["train_bidi.yaml", "train_unid.yaml"])
def test_a_range_of_k_around_what_is_evaluated_with_the_step_of_the_recipe(llm, tmp_path, name):
    args = arguments(llm, tmp_path, name)
    policy = BestowTask.build_model(args).policy
    assert isinstance(policy, WaitKPolicy)
    assert policy.low < EVALUATED < policy.high and policy.step == 2
    assert [policy.low, policy.high] == read_yaml(CONF / name)["policy_conf"]["k"]


def test_bidi_goes_on_from_the_offline_weights(llm, tmp_path):
    bidi = BestowTask.build_model(arguments(llm, tmp_path, "train_bidi.yaml")).state_dict()
    offline = BestowTask.build_model(arguments(llm, tmp_path)).state_dict()
    assert {name: value.shape for name, value in bidi.items()} == {n: v.shape for n, v in offline.items()}


@pytest.mark.parametrize("names", [(), ("train_bidi.yaml",), ("train_unid.yaml",)])
def test_all_learn_to_keep_silent(llm, tmp_path, names):
    assert BestowTask.build_model(arguments(llm, tmp_path, *names)).features.silence.longest == (8000, 16000)


@pytest.mark.parametrize("names", [(), ("train_bidi.yaml",)])
def test_offline_and_bidi_hear_everything_and_learn_with_chunks_too(llm, tmp_path, names):
    """S-unid fine-tunes for minutes: by then connector and LLM must know frames that have not heard everything."""
    encoder = BestowTask.build_model(arguments(llm, tmp_path, *names)).encoder
    assert encoder.context == "whole"
    assert (70, 6) in encoder.contexts


def test_unid_streams_with_the_offline_weights(llm, tmp_path):
    unid = BestowTask.build_model(arguments(llm, tmp_path, "train_unid.yaml"))
    offline = BestowTask.build_model(arguments(llm, tmp_path))
    assert list(unid.encoder.context) == [70, 6]
    assert offline.encoder.context == "whole"
    assert unid.features.preencoder is None and type(unid.features.normalize).__name__ == "RunningMVN"
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (unid, offline)]
    assert shapes[0] == shapes[1]


def test_unid_replaces_an_encoder_that_cannot_stream(llm, tmp_path):
    unid = BestowTask.build_model(arguments(llm, tmp_path, "tuning/e_branchformer.yaml", "train_unid.yaml"))
    offline = BestowTask.build_model(arguments(llm, tmp_path, "tuning/e_branchformer.yaml"))
    assert unid.features.preencoder is None
    sizes = [sum(p.numel() for n, p in m.named_parameters() if n[:4] in ("enco", "feat")) for m in (unid, offline)]
    assert 0.7 < sizes[0] / sizes[1] < 1.4, sizes
    # What the recipe's --unid_init hands over for such a pair (see the configuration's first lines).
    theirs = offline.features.preencoder.layers.state_dict()
    ours = unid.encoder.encoder.subsampling.layers.state_dict()
    assert {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in ours.items()}


def test_ctc_pre_training_of_the_streaming_encoder_builds(llm, tmp_path):
    args = arguments(llm, tmp_path, "train_unid.yaml", "train_unid_ctc.yaml")
    model = BestowTask.build_model(args)
    assert model.llm is None and model.ctc is not None
    assert ["valid", "loss", "min"] in [list(c) for c in args.best_model_criterion]
