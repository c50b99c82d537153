"""Policies by one word."""

import pytest

from espnet_bestow.simul.policy_spec import PolicySpec


def test_a_policy_with_options_and_its_names():
    spec = PolicySpec.parse("ed_att:alpha=0.25,newest=4,blind_prompt=false")
    assert spec == PolicySpec("ed_att", (("alpha", 0.25), ("newest", 4), ("blind_prompt", False)))
    assert str(spec) == "ed_att:alpha=0.25,newest=4,blind_prompt=false"
    assert PolicySpec.parse(str(spec)) == spec
    assert spec.folder == "ed_att_alpha0.25_newest4_blind_promptfalse"
    assert str(PolicySpec.parse("offline")) == PolicySpec.parse("offline").folder == "offline"


def test_a_sweep_is_every_combination_in_order():
    specs = PolicySpec.parse_all(["wait_k:k=2/10,step=1/3", "offline"])
    assert [str(spec) for spec in specs] == [
        "wait_k:k=2,step=1", "wait_k:k=2,step=3", "wait_k:k=10,step=1", "wait_k:k=10,step=3", "offline",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "policy '' is not <name>"),
        ("wait_k:", "'wait_k:' is not <name> or <name>:<option>=<value>"),
        ("wait_k:k", "'wait_k:k' is not <name>"),
        ("wait_k:k=3 step=2", "is not <name>"),
        ("wait_k:k=3,k=4", "gives k twice"),
        ("wait_k:k=3/3", "one of them comes twice"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        PolicySpec.parse_all([text])


def test_one_policy_is_one():
    with pytest.raises(ValueError, match="'wait_k:k=3/4' is 2 policies"):
        PolicySpec.parse("wait_k:k=3/4")
