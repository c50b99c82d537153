"""LLMs with a sliding window compute in training and in decoding what transformers computes, whatever the padding."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from espnet_bestow.llm.causal_lm import CausalLM, FrozenCausalLM
from espnet_bestow.seats import Seats

WINDOW, LENGTH, VOCABULARY = 6, 14, 60
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}
WINDOWED = SMALL | {"sliding_window": WINDOW}
FAMILIES = {
    "mistral": WINDOWED,  # every layer has the window, and nothing but its size says so
    "phi3": WINDOWED,
    "gemma2": WINDOWED | {"head_dim": 8},  # every other layer
    "gemma3_text": WINDOWED | {"head_dim": 8, "layer_types": ["full_attention", "sliding_attention"]},
    "qwen2": WINDOWED | {"use_sliding_window": True, "max_window_layers": 1},
}


def write(path, family, **config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **config))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module", params=FAMILIES)
def llm(request, tmp_path_factory):
    return CausalLM(write(tmp_path_factory.mktemp(request.param), request.param, **FAMILIES[request.param])).eval()


def text():
    torch.manual_seed(1)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, :4] = False
    return torch.randint(4, VOCABULARY, mask.shape), mask


def assert_same(found, full, mask):
    torch.testing.assert_close(found[mask], full[mask], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_full_pass_is_that_of_transformers(llm):
    ids, mask = text()
    full = llm(llm.embed(ids), mask)
    torch.testing.assert_close(full[:1], llm.model(input_ids=ids[:1]).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_between_speech_and_text_does_not_shorten_the_window(llm):
    """As connectors leave it that put speech before the text."""
    ids, mask = text()
    mask = torch.ones_like(mask)
    mask[1, 5:9] = False
    together = llm(llm.embed(ids), mask)[1:]
    alone = llm(llm.embed(ids[1:, mask[1]]), torch.ones(1, LENGTH - 4, dtype=torch.bool))
    torch.testing.assert_close(together[:, mask[1]], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("readers", [{}, {1: lambda hidden: 1.5 * hidden}], ids=["", "readers"])
def test_steps_beyond_the_window_equal_the_full_pass(llm, readers):
    ids, mask = text()
    x = llm.embed(ids)
    state, steps = llm.start(2, ids.device), [(0, 7), *((u, u + 1) for u in range(7, LENGTH))]
    found = [llm(x[:, a:b], mask[:, a:b], state, readers=readers) for a, b in steps]
    assert_same(torch.cat(found, 1), llm(x, mask, readers=readers), mask)


@torch.no_grad()
def test_beams_keep_what_the_window_has_left_behind(llm):
    """A cache that forgot would be shorter than its mask when rows are chosen."""
    ids, mask = text()
    x, rows = llm.embed(ids), torch.tensor([1, 0])
    state = llm.start(2, ids.device)
    llm(x[:, :10], mask[:, :10], state)
    found = llm(x[rows, 10:], mask[rows, 10:], state.select(rows))
    assert_same(found, llm(x, mask)[rows, 10:], mask[rows, 10:])


@torch.no_grad()
@pytest.mark.parametrize("sessions", [[0, 1], [1]], ids=["two", "one"])
def test_seats_beyond_the_window_equal_the_full_pass(llm, sessions):
    ids, mask = (each[sessions] for each in text())
    x, state, seats = llm.embed(ids), llm.seated(), Seats()
    taken = [seats.take() for _ in sessions]

    def read(a, b):
        state.sit(seats.place(taken, mask[:, a:b]))
        logits = llm(x[:, a:b], mask[:, a:b], state)
        for seat, row in zip(taken, mask[:, a:b], strict=True):
            seats.advance(seat, int(row.sum()))
        return logits

    found = [read(0, 7), *(read(u, u + 1) for u in range(7, LENGTH))]
    assert_same(torch.cat(found, 1), llm(x, mask), mask)


@pytest.mark.parametrize(
    ("family", "config", "match"),
    [
        ("bloom", {"hidden_size": 32, "n_layer": 1, "n_head": 2}, "'bloom' with ALiBi cannot be used"),
        ("mpt", {"d_model": 32, "n_layers": 1, "n_heads": 2}, "'mpt' with ALiBi cannot be used"),
        (
            "falcon",
            {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "alibi": True},
            "'falcon' with ALiBi cannot be used",
        ),
        ("lfm2", SMALL | {"layer_types": ["conv", "full_attention"]}, r"layers of types \['conv'\] cannot be used"),
    ],
)
def test_llms_that_would_decode_otherwise_than_they_were_trained_are_refused(tmp_path, family, config, match):
    path = write(tmp_path, family, **({"vocab_size": VOCABULARY} | config))
    with pytest.raises(ValueError, match=match):
        FrozenCausalLM(path)


def test_an_llm_that_counts_from_the_end_of_the_cache_does_not_stream(tmp_path):
    config = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "attention_types": [[["local"], 1]]}
    with pytest.raises(ValueError, match="this LLM cannot stream: those of the types"):
        CausalLM(write(tmp_path, "gpt_neo", vocab_size=VOCABULARY, **config)).seated()
