"""Properties 1, 2, 5 and 6 of the design, for every connector and LLM family."""

import pytest
import torch
from torch import nn

from espnet_bestow.connectors import CONNECTORS, Speech
from espnet_bestow.decoding import Stepper
from espnet_bestow.llm.causal_lm import CausalLM
from espnet_bestow.model import BestowModel
from espnet_bestow.visibility import WaitKPolicy, answer_index, offline
from tests.llm_fixtures import write_llm

CONNECTOR_CONFIGURATIONS = {
    "one block": ("cross_attention", {"num_blocks": 1}),
    "two blocks": ("cross_attention", {"num_blocks": 2}),
    "eight blocks": ("cross_attention", {"num_blocks": 8}),
    "cross-attention only": ("cross_attention", {"num_blocks": 1, "self_attention": False}),
    "with speech projection": ("cross_attention", {"num_blocks": 2, "speech_projection": 12}),
    "many heads": ("cross_attention", {"num_blocks": 1, "dim": 24, "num_heads": 12}),
    "zero init": ("cross_attention", {"num_blocks": 2, "zero_init": True}),
    "recurrent": ("recurrent", {"hidden": 16, "num_heads": 4}),
    "per layer": ("per_layer", {"num_heads": 4, "gate": 0.7}),
    "every second layer": ("per_layer", {"every": 2, "num_heads": 4, "ffn_mult": 0, "gate": 0.7}),
    "closed gates": ("per_layer", {"num_heads": 4}),
    "prepend": ("prepend", {"dim": 8, "num_heads": 2}),
    "prepend a linear layer": ("prepend", {"dim": 8, "num_layers": 0, "subsampling": 1}),
    "blsp": ("blsp", {"num_layers": 2, "bottleneck": 8}),
    "slm": ("slm", {"num_heads": 2}),
}
STAIRCASE = [name for name, (kind, _) in CONNECTOR_CONFIGURATIONS.items() if not CONNECTORS[kind].hears_all]
"""Those whose words see what is visible."""
DEAF = {"zero init", "closed gates"}
"""Those that start as the plain text LLM."""


@pytest.fixture(scope="session")
def llm_paths(tmp_path_factory):
    return {family: write_llm(tmp_path_factory.mktemp(family), family) for family in ("llama", "qwen2", "gpt2")}


def build(path, configuration="two blocks"):
    torch.manual_seed(1)
    name, options = CONNECTOR_CONFIGURATIONS[configuration]
    if name == "cross_attention":
        options = {"dim": 16, "num_heads": 4, **options}
    llm = CausalLM(str(path))
    connector = CONNECTORS[name].beside(llm.width, llm.depth, 6, **options)
    return BestowModel(nn.Identity(), connector, llm, nn.Identity()).eval()


def batch(seed=0):
    """Two utterances of unequal audio and text."""
    torch.manual_seed(seed)
    speech = Speech(torch.randn(2, 11, 6), torch.tensor([11, 7]))
    prompts, answers = [[5, 6, 7, 8], [9, 10]], [[11, 12, 13, 14], [15, 16, 17]]
    return speech, prompts, answers


def teacher_forced(model, speech, prompts, answers, rule):
    rows = [p + a for p, a in zip(prompts, answers, strict=True)]
    width, device = max(map(len, rows)), speech.frames.device
    ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=device)
    mask = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r in rows], device=device)
    prompt_lengths = torch.tensor([len(p) for p in prompts], device=device)
    visible = rule(answer_index(mask, prompt_lengths), mask, speech.lengths)
    return model.teacher_forced(speech, ids, mask, visible).log_softmax(-1)


RULES = {"offline": offline, "wait-k": WaitKPolicy(k=2, step=2).rule(2)}


@torch.no_grad()
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("configuration", CONNECTOR_CONFIGURATIONS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_cached_steps_equal_the_full_pass(llm_paths, family, configuration, rule):
    model = build(llm_paths[family], configuration)
    speech, prompts, answers = batch()
    full = teacher_forced(model, speech, prompts, answers, rule)
    stepper = Stepper(model, speech, prompts, rule)
    for n in range(4):
        for b in range(2):
            if n <= len(answers[b]):
                expected = full[b, len(prompts[b]) - 1 + n]
                torch.testing.assert_close(stepper.logp[b], expected, rtol=1e-4, atol=1e-4)
        stepper.write(torch.tensor([[*a, 0, 0][n] for a in answers]))


@torch.no_grad()
@pytest.mark.parametrize("configuration", CONNECTOR_CONFIGURATIONS)
def test_a_batch_gives_what_its_members_give_alone(llm_paths, configuration):
    model = build(llm_paths["llama"], configuration)
    speech, prompts, answers = batch()
    together = teacher_forced(model, speech, prompts, answers, offline)
    for b in range(2):
        n = int(speech.lengths[b])
        single = Speech(speech.frames[b : b + 1, :n], speech.lengths[b : b + 1])
        alone = teacher_forced(model, single, prompts[b : b + 1], answers[b : b + 1], offline)
        torch.testing.assert_close(together[b, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("configuration", ["two blocks", "cross-attention only", "recurrent", "per layer", "prepend"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_batch_teaches_what_its_members_teach_alone(llm_paths, family, configuration):
    model = build(llm_paths[family], configuration)
    speech, prompts, answers = batch()

    def taught(first, last):
        model.zero_grad()
        some = Speech(speech.frames[first:last], speech.lengths[first:last])
        logp = teacher_forced(model, some, prompts[first:last], answers[first:last], offline)
        for row, answer, prompt in zip(logp, answers[first:last], prompts[first:last], strict=True):
            row[len(prompt) - 1 :][: len(answer)].gather(1, torch.tensor(answer)[:, None]).sum().backward(
                retain_graph=True
            )
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    together, one, other = taught(0, 2), taught(0, 1), taught(1, 2)
    assert together.keys() == one.keys() == other.keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, one[name] + other[name], rtol=1e-4, atol=1e-4, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("configuration", STAIRCASE)
def test_audio_beyond_what_is_visible_changes_nothing(llm_paths, configuration):
    model = build(llm_paths["llama"], configuration)
    speech, prompts, answers = batch()
    rule = RULES["wait-k"]  # the first answer token sees 4 frames, the next 6, ...
    changed = Speech(speech.frames.clone(), speech.lengths)
    changed.frames[:, 6:] += 5.0
    a = teacher_forced(model, speech, prompts, answers, rule)
    b = teacher_forced(model, changed, prompts, answers, rule)
    for row, prompt in enumerate(prompts):
        same = len(prompt) + 1  # prompt positions and answer tokens 0 and 1
        torch.testing.assert_close(a[row, :same], b[row, :same], rtol=0, atol=1e-6)
        if configuration not in DEAF:
            assert (a[row, same] - b[row, same]).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("configuration", sorted(DEAF))
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_zero_init_is_the_plain_text_llm(llm_paths, family, configuration):
    model = build(llm_paths[family], configuration)
    speech, prompts, answers = batch()
    ours = teacher_forced(model, speech, prompts, answers, offline)
    for b in range(2):
        ids = torch.tensor([prompts[b] + answers[b]])
        plain = model.llm.model(input_ids=ids).logits.log_softmax(-1)
        torch.testing.assert_close(ours[b, : ids.shape[1]], plain[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_may_stand_anywhere(llm_paths):
    """Rows at different positions of their texts can share a step, which streaming sessions will need."""
    model = build(llm_paths["llama"])
    speech, _, _ = batch()
    state = model.start(speech)
    everything = speech.lengths[:, None].to(torch.int32)
    first = torch.tensor([[True, True], [True, False]])
    a = model.step(torch.tensor([[5, 6], [7, 0]]), first, everything.repeat(1, 2), state)
    b = model.step(torch.tensor([[0], [8]]), torch.tensor([[False], [True]]), everything, state)
    c = model.step(torch.tensor([[9], [10]]), torch.tensor([[True], [True]]), everything, state)
    mask = torch.ones(2, 3, dtype=torch.bool)
    full = model.teacher_forced(speech, torch.tensor([[5, 6, 9], [7, 8, 10]]), mask, everything.repeat(1, 3))
    torch.testing.assert_close(torch.stack([a[0, 0], a[0, 1], c[0, 0]]), full[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.stack([a[1, 0], b[1, 0], c[1, 0]]), full[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("configuration", ["two blocks", "recurrent", "per layer", "prepend", "blsp", "slm"])
def test_rows_that_share_an_utterance_equal_copies_of_it(llm_paths, configuration):
    model = build(llm_paths["llama"], configuration)
    speech, prompts, _ = batch()
    shared = Stepper(model, speech, prompts)
    shared.repeat(3)
    tokens = torch.tensor([5, 6, 7, 8, 9, 10])
    shared.write(tokens)
    copies = Stepper(model, speech.select([0, 0, 0, 1, 1, 1]), [p for p in prompts for _ in range(3)])
    copies.write(tokens)
    torch.testing.assert_close(shared.logp, copies.logp, rtol=1e-4, atol=1e-4)
