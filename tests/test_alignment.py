"""Where tokens were said: best CTC paths against a search through all paths, and the loss that teaches them."""

import itertools
import math

import pytest
import torch
from torch import nn

from espnet_bestow.alignment import Spans, alignment_losses, ctc_spans
from espnet_bestow.connectors import CONNECTORS
from espnet_bestow.encoders.features import Features
from espnet_bestow.espnet_model import ESPnetBestowModel
from espnet_bestow.rows import is_transcript
from espnet_bestow.visibility import OfflinePolicy, WaitKPolicy
from tests.test_espnet_model import D_ENC, FrameEncoder, batch, build, llm, padded  # noqa: F401

BLANK = 3


def collapse(path):
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def best_by_hand(logp, target):
    """All label sequences, and the frames of each token on the best one."""
    paths = [p for p in itertools.product(range(BLANK + 1), repeat=len(logp)) if collapse(p) == target]
    best = max(paths, key=lambda p: sum(float(row[label]) for row, label in zip(logp, p, strict=True)))
    frames = []
    for label, group in itertools.groupby(enumerate(best), key=lambda item: item[1]):
        places = [place for place, _ in group]
        if label != BLANK:
            frames.append((places[0], places[-1]))
    return frames


@pytest.mark.parametrize("target", [[0], [0, 1], [2, 2], [1, 1, 0]])
def test_spans_are_those_of_the_best_of_all_paths(target):
    torch.manual_seed(len(target))
    for _ in range(5):
        logits = 2 * torch.randn(1, 6, BLANK + 1)
        length = 5
        spans = ctc_spans(logits, torch.tensor([length]), torch.tensor([target]), torch.tensor([len(target)]))
        found = list(zip(spans.first[0].tolist(), spans.last[0].tolist(), strict=True))
        assert found == best_by_hand(logits[0, :length].log_softmax(-1), target)


def test_spans_of_a_batch_are_those_of_its_members():
    torch.manual_seed(0)
    logits = torch.randn(2, 7, BLANK + 1)
    target = torch.tensor([[0, 1, 2], [1, -1, -1]])
    spans = ctc_spans(logits, torch.tensor([7, 4]), target, torch.tensor([3, 1]))
    alone = ctc_spans(logits[1:, :4], torch.tensor([4]), target[1:, :1], torch.tensor([1]))
    assert spans.first[1].tolist() == [*alone.first[0].tolist(), -1, -1]
    assert spans.last[1].tolist() == [*alone.last[0].tolist(), -1, -1]


def test_a_transcript_that_does_not_fit_its_frames_has_no_spans():
    spans = ctc_spans(torch.randn(1, 3, BLANK + 1), torch.tensor([3]), torch.tensor([[0, 0, 0]]), torch.tensor([3]))
    assert spans.first.tolist() == spans.last.tolist() == [[-1, -1, -1]]


def test_losses_are_of_the_attention_inside_the_span():
    weights = torch.tensor([[[[0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]]])  # (1, 1, 2, 4)
    spans = Spans(torch.tensor([[1, 3]]), torch.tensor([[2, 3]]))
    everything = torch.tensor([[4, 4]], dtype=torch.int32)
    losses = alignment_losses(weights, everything, spans)
    assert losses[0].tolist() == pytest.approx([-math.log(0.5), -math.log(0.25)], rel=1e-5)
    early = torch.tensor([[4, 3]], dtype=torch.int32)  # token 1 is written before its last frame is seen
    assert alignment_losses(weights, early, spans)[0, 1] == 0


def test_only_answers_that_repeat_what_was_said_are_transcripts():
    text, lengths = padded([[4, 5, 2], [6, 2], [7, 2], [4, 5, 6, 2], [2]])
    src, src_lengths = padded([[4, 5], [5], [7, 7], [4, 5], [9]])
    assert is_transcript(text, lengths, src, src_lengths).tolist() == [True, False, False, False, False]


def speaking(rows=(0, 1, 2)):
    """The batch of the other tests, in which utterances 0 and 1 answer with their transcripts."""
    data = batch(rows)
    transcripts = {0: [4, 5], 1: [6]}
    answers = [[*transcripts.get(row, [8, 8, 8]), 2] for row in rows]
    data["text"], data["text_lengths"] = padded(answers)
    return data


@pytest.mark.parametrize("policy", [OfflinePolicy(), WaitKPolicy(2, 3)])
def test_the_loss_joins_with_its_weight_and_is_that_of_the_rows_alone(llm, policy):  # noqa: F811
    plain = build(llm, policy, ctc_weight=0.25)
    taught = build(llm, policy, ctc_weight=0.25, alignment_weight=0.5)
    base, _, tokens = plain(**speaking())
    loss, stats, _ = taught(**speaking())
    align = stats["loss_align"]
    assert align > 0
    assert loss.item() == pytest.approx(base.item() + 0.5 * align.item(), rel=1e-5)
    alone = 0.0
    for row in (0, 1):
        _, own, weight = taught(**speaking((row,)))
        alone += float(own["loss_align"] * weight)
    assert alone == pytest.approx(float(align * tokens), rel=1e-4)
    _, none, _ = taught(**speaking((2,)))
    assert none["loss_align"] == 0


def with_connector(llm, name, policy, **options):  # noqa: F811
    torch.manual_seed(1)
    connector = CONNECTORS[name].beside(llm.width, llm.depth, D_ENC, num_heads=2, dropout=0.0, **options)
    head, weights = nn.Linear(D_ENC, 11), {"ctc_weight": 0.25, "alignment_weight": 1.0}
    return ESPnetBestowModel(Features(), FrameEncoder(), connector, llm, policy, head, **weights)


@pytest.mark.parametrize("policy", [OfflinePolicy(), WaitKPolicy(2, 3)])
@pytest.mark.parametrize(
    ("name", "options"), [("cross_attention", {"dim": 16}), ("per_layer", {"gate": 0.7}), ("recurrent", {"hidden": 16})]
)
def test_teaching_moves_attention_onto_the_words(llm, name, options, policy):  # noqa: F811
    model = with_connector(llm, name, policy, **options).train()
    optimizer = torch.optim.Adam(model.connector.parameters(), lr=1e-2)
    data, losses = speaking(), []
    data.pop("task")
    for _ in range(60):
        optimizer.zero_grad()
        loss, stats, _ = model(**data)
        loss.backward()
        optimizer.step()
        losses.append(float(stats["loss_align"]))
    assert losses[-1] < 0.3 * losses[0]


def test_alignment_needs_ctc_and_attention(llm):  # noqa: F811
    with pytest.raises(ValueError, match=r"alignment_weight=0.5 needs ctc_weight > 0.*ctc_weight=0.0"):
        build(llm, alignment_weight=0.5)
    with pytest.raises(ValueError, match=r"connector: cross_attention.*PrependConnector"):
        with_connector(llm, "prepend", OfflinePolicy(), dim=16)
