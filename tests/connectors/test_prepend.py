"""What is peculiar to speech in front of the text; the properties of all connectors are in test_model.py."""

import numpy as np
import pytest
import torch
from torch import nn

from espnet_bestow.connectors import BLSPConnector, PrependConnector, SLMConnector, Speech
from espnet_bestow.encoders.features import Features
from espnet_bestow.errors import BadUtteranceError
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.inference import DecodingOptions, Speech2Text
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.model import BestowModel
from espnet_bestow.prompt import build_template
from espnet_bestow.quantize import quantize
from espnet_bestow.visibility import OfflinePolicy, WaitKPolicy
from tests.llm_fixtures import write_llm
from tests.test_espnet_model import D_ENC, WINDOW, FrameEncoder


def connector(**options) -> PrependConnector:
    torch.manual_seed(0)
    return PrependConnector(12, 6, **{"dim": 8, "num_heads": 2, "kernel_size": 3, **options}).eval()


def read(prepend, speech, text):
    """What the LLM gets for text (B, U, 12), all of it real."""
    mask = torch.ones(text.shape[:2], dtype=torch.bool)
    visible = speech.lengths[:, None].expand(mask.shape).int()
    return prepend(text, mask, visible, prepend.start(speech))


def blsp(**options) -> BLSPConnector:
    torch.manual_seed(0)
    return BLSPConnector(12, 6, **{"num_layers": 2, "bottleneck": 8, **options}).eval()


def slm(**options) -> SLMConnector:
    torch.manual_seed(0)
    return SLMConnector(12, 6, **{"num_heads": 2, **options}).eval()


FAMILY = {"prepend": connector, "blsp": blsp, "slm": slm}
family = pytest.mark.parametrize("build", FAMILY.values(), ids=FAMILY)


@torch.no_grad()
@pytest.mark.parametrize(
    ("prepend", "expected"),
    [
        *[(connector(subsampling=n), found) for n, found in ((1, [11, 7]), (2, [6, 4]), (4, [3, 2]), (8, [2, 1]))],
        *[(blsp(num_layers=n), found) for n, found in ((1, [6, 4]), (2, [3, 2]), (3, [2, 1]))],
        *[(slm(one_of=n), found) for n, found in ((1, [11, 7]), (3, [4, 3]), (4, [3, 2]), (20, [1, 1]))],
    ],
)
def test_speech_stands_before_the_text(prepend, expected):
    speech = Speech(torch.randn(2, 11, 6), torch.tensor([11, 7]))
    text = torch.randn(2, 5, 12)
    found = read(prepend, speech, text)
    assert prepend.positions(11) == expected[0]
    assert found.embeddings.shape == (2, expected[0] + 5, 12)
    assert found.mask[:, : expected[0]].sum(1).tolist() == expected and found.mask[:, -5:].all()
    assert torch.equal(found.embeddings[:, -5:], text)


@family
@torch.no_grad()
def test_it_is_read_once(build):
    prepend = build()
    speech = Speech(torch.randn(2, 11, 6), torch.tensor([11, 7]))
    state = prepend.start(speech)
    first, second = torch.randn(2, 3, 12), torch.randn(2, 1, 12)
    visible, mask = torch.full((2, 3), 7, dtype=torch.int32), torch.ones(2, 3, dtype=torch.bool)
    assert prepend(first, mask, visible, state).embeddings.shape[1] == prepend.positions(11) + 3
    again = prepend(second, mask[:, :1], visible[:, :1], state)
    assert torch.equal(again.embeddings, second) and again.mask.shape == (2, 1)


@family
@torch.no_grad()
def test_frames_behind_an_utterance_change_nothing(build):
    prepend = build()
    frames, lengths = torch.randn(2, 11, 6), torch.tensor([11, 6])
    changed = frames.clone()
    changed[1, 6:] = 1e3
    a, b = (prepend.start(Speech(each, lengths)) for each in (frames, changed))
    assert torch.equal(a.prefix[0], b.prefix[0]) and torch.equal(a.prefix[1][a.mask[1]], b.prefix[1][b.mask[1]])
    alone = prepend.start(Speech(frames[1:, :6], lengths[1:]))
    torch.testing.assert_close(a.prefix[1][a.mask[1]], alone.prefix[0], rtol=1e-5, atol=1e-6)


@family
@torch.no_grad()
def test_several_texts_may_be_about_one_utterance(build):
    prepend = build()
    speech = Speech(torch.randn(2, 11, 6), torch.tensor([11, 7]))
    text = torch.randn(6, 4, 12)
    mask, visible = torch.ones(6, 4, dtype=torch.bool), torch.full((6, 4), 7, dtype=torch.int32)
    shared = prepend(text, mask, visible, prepend.start(speech))
    thrice = torch.tensor([0, 0, 0, 1, 1, 1])
    for state in (prepend.start(speech.select(thrice)), prepend.start(speech).select(thrice)):
        torch.testing.assert_close(shared.embeddings, prepend(text, mask, visible, state).embeddings)
    rows = torch.tensor([1, 1, 0])
    chosen = prepend(text[:3], mask[:3], visible[:3], prepend.start(speech).select(rows))
    assert torch.equal(chosen.mask[0], shared.mask[3]) and torch.equal(chosen.mask[2], shared.mask[0])


@family
@torch.no_grad()
def test_an_utterance_without_frames_is_no_nan(build):
    state = build().start(Speech(torch.randn(2, 5, 6), torch.tensor([5, 0])))
    assert state.prefix.isfinite().all() and not state.mask[1].any()


@torch.no_grad()
def test_more_than_the_llm_can_take_is_an_error(tmp_path):
    llm = CausalLM(str(write_llm(tmp_path, "gpt2")))
    assert llm.context == 128
    prepend = PrependConnector(llm.width, 6, dim=8, num_heads=2, subsampling=2)
    model = BestowModel(nn.Identity(), prepend, llm, nn.Identity()).eval()
    ids = torch.randint(5, 50, (2, 8))
    everything = torch.ones(2, 8, dtype=torch.bool), torch.full((2, 8), 300, dtype=torch.int32)
    for frames, fits in ((240, True), (241, False)):
        assert prepend.positions(frames) == (frames + 1) // 2
        speech = Speech(torch.randn(2, frames, 6), torch.tensor([5, frames]))
        if fits:
            assert model.teacher_forced(speech, ids, *everything).shape[1] == 8
        else:
            with pytest.raises(ValueError, match=r"row 1 .* 121 positions and text of 8 exceed"):
                model.teacher_forced(speech, ids, *everything)


def test_speech_takes_room_from_the_answer(tmp_path):
    path = str(write_llm(tmp_path))
    llm = CausalLM(path)
    prepend = PrependConnector(llm.width, D_ENC, dim=8, num_heads=2, num_layers=0, subsampling=2)
    model = ESPnetBestowModel(Features(), FrameEncoder(), prepend, llm, OfflinePolicy())
    template = build_template("plain", path)
    s2t = Speech2Text(model, template, "translate", DecodingOptions(max_tokens=1000))
    prompt = template.encode_prompt("translate")
    room = template.max_tokens - len(prompt)
    assert s2t._longest_answers([0, 11], [prompt] * 2) == [room, room - 6]
    assert s2t._longest_answers([2 * room - 2, 0], [prompt] * 2) == [1, room]
    with pytest.raises(ValueError, match=rf"row 1 .* speech of {room} positions and a prompt of {len(prompt)} tokens"):
        s2t.search([np.zeros(WINDOW), np.zeros(2 * room * WINDOW)], [prompt] * 2)
    with pytest.raises(BadUtteranceError, match=rf"^utterance 'long': speech of {room} positions"):
        s2t.answers([np.zeros(WINDOW), np.zeros(2 * room * WINDOW)], [prompt] * 2, ["short", "long"])


@family
def test_all_of_it_learns(build):
    prepend = build().train()
    found = read(prepend, Speech(torch.randn(2, 11, 6), torch.tensor([11, 7])), torch.randn(2, 5, 12))
    (found.embeddings * torch.randn_like(found.embeddings)).sum().backward()  # a norm's own square sum is constant
    assert all(each.grad is not None for each in prepend.parameters())
    idle = [name for name, each in prepend.named_parameters() if not each.grad.abs().max() > 1e-6]
    assert all(name.endswith("key.bias") for name in idle)  # it moves all scores of a query alike


@torch.no_grad()
def test_blsp_is_what_it_says():
    """Whisper's 30 s are 188 positions; the parts, in order."""
    assert BLSPConnector(64, 16, bottleneck=8).positions(1500) == 188
    adapter = blsp(num_layers=1)
    frames = torch.randn(1, 5, 6)
    outer = torch.nn.functional.conv1d(
        frames.transpose(1, 2), adapter.convolutions[0].weight, adapter.convolutions[0].bias, stride=2, padding=2
    )
    x = (outer[:, :12] * outer[:, 12:].sigmoid()).transpose(1, 2)
    x = x + torch.nn.functional.gelu(x @ adapter.narrow.weight.T) @ adapter.wide.weight.T
    expected = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(adapter.start(Speech(frames, torch.tensor([5]))).prefix, expected)


def test_slm_keeps_one_of_so_many_frames():
    speech = Speech(torch.randn(2, 11, 6), torch.tensor([11, 6]))
    calm = slm()
    assert calm._kept(speech).tolist() == [[2, 6, 10], [2, 5, 5]]  # the third of the second is no frame of it
    calm.train()
    drawn = torch.stack([calm._kept(speech) for _ in range(200)])
    assert [sorted(set(drawn[:, 0, n].tolist())) for n in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert sorted(set(drawn[:, 1, 1].tolist())) == [4, 5]
    assert not (drawn[:, 0, 0] == drawn[:, 1, 0]).all()  # each row for itself


def test_what_it_cannot_do_is_named():
    with pytest.raises(ValueError, match="subsampling=3 must be a power of two"):
        connector(subsampling=3)
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        connector(kernel_size=4)
    with pytest.raises(ValueError, match="num_layers=0 must be >= 1 and kernel_size=5 odd"):
        blsp(num_layers=0)
    with pytest.raises(ValueError, match="one_of=0 must be >= 1"):
        slm(one_of=0)
    with pytest.raises(ValueError, match="PrependConnector cannot stream"):
        connector().seated()
    parts = {"features": nn.Identity(), "encoder": nn.Identity(), "connector": connector(), "llm": None}
    with pytest.raises(ValueError, match="WaitKPolicy: PrependConnector lets every word hear everything"):
        ESPnetBestowModel(**parts, policy=WaitKPolicy())
    assert ESPnetBestowModel(**parts, policy=OfflinePolicy()).connector is parts["connector"]


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_nothing_but_linears_can_be_rounded(tmp_path, precision):
    """Then no parameter is left that would say in which precision it computes."""
    path = str(write_llm(tmp_path, "llama"))
    prepend = PrependConnector(32, 6, dim=8, num_layers=0, subsampling=1)
    model = BestowModel(nn.Identity(), prepend, CausalLM(path), nn.Identity()).eval()
    speech = Speech(torch.randn(1, 5, 6), torch.tensor([5]))
    ids = torch.tensor([[7, 8, 9]])
    mask, visible = torch.ones_like(ids, dtype=torch.bool), torch.full((1, 3), 5, dtype=torch.int32)
    before = model.teacher_forced(speech, ids, mask, visible)
    quantize(model.connector, precision)
    assert not list(model.connector.parameters())
    after = model.teacher_forced(speech, ids, mask, visible)
    torch.testing.assert_close(after, before, rtol=0.1, atol=0.1)
