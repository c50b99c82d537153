"""Numbers as people write them."""

import pytest
import yaml

from espnet_bestow.yaml_numbers import with_numbers


@pytest.mark.parametrize("text", ["8e-4", "1E5", "+2e+3", "-5.e-2", "3.5e2"])
def test_what_yaml_takes_for_a_word_is_a_number(text):
    assert with_numbers(yaml.safe_load(text)) == float(text)


@pytest.mark.parametrize("text", ["e5", "1e", "2e-3x", "1_0e3", "0x1e-2", "", "exp/1e-3", "8"])
def test_words_stay_words(text):
    assert with_numbers(text) == text


def test_lists_and_mappings_are_looked_through():
    config = yaml.safe_load("{optim: adamw, betas: [9e-1, 0.98], groups: [{lr: 1e-5}], steps: 3, on: true, none: null}")
    found = with_numbers(config)
    assert found["betas"] == [0.9, 0.98] and found["groups"] == [{"lr": 1e-5}]
    assert {key: found[key] for key in ("optim", "steps", "none")} == {"optim": "adamw", "steps": 3, "none": None}
