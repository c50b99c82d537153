"""An encoder that learns to make another model's frames."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

from espnet_bestow import ops
from espnet_bestow.model import BestowModel
from espnet_bestow.silence import SilenceAround
from espnet_bestow.task import BestowTask
from espnet_bestow.teacher import Teacher
from tests.encoders.test_whole_pass import whole
from tests.test_espnet_model import batch, build, llm  # noqa: F401


def test_the_distance_joins_the_loss_with_its_weight(llm):  # noqa: F811
    teacher = build(llm)
    with torch.no_grad():
        teacher.encoder.linear.bias += 0.3
    plain = build(llm, ctc_weight=0.25)
    taught = build(llm, ctc_weight=0.25, teacher=teacher, teacher_weight=0.5)
    data = batch()
    base, _, tokens = plain(**data)
    loss, stats, _ = taught(**data)
    by_hand = torch.zeros(())
    for row in range(3):
        length = data["speech_lengths"][row : row + 1]
        waveform = data["speech"][row : row + 1, : int(length)]
        gap = teacher.encode(waveform, length).frames - plain.encode(waveform, length).frames
        by_hand += gap.square().mean(2).sum()
    assert stats["loss_teacher"].item() == pytest.approx((by_hand / tokens).item(), rel=1e-5)
    assert loss.item() == pytest.approx(base.item() + 0.5 * stats["loss_teacher"].item(), rel=1e-5)


def test_the_teacher_is_neither_trained_nor_saved(llm):  # noqa: F811
    teacher, plain = build(llm), build(llm)
    taught = build(llm, teacher=teacher)
    assert taught.state_dict().keys() == plain.state_dict().keys()
    taught(**batch())[0].backward()
    assert all(p.grad is None for p in teacher.encoder.parameters())
    assert not teacher.training and not taught.train().teacher.model.training


def test_a_pupil_may_train_in_another_precision(llm):  # noqa: F811
    """As ESPnet's --train_dtype float64 has it: model and recordings alike."""
    teacher, data = build(llm), batch()
    _, expected, _ = build(llm, teacher=teacher)(**data)
    _, found, _ = build(llm, teacher=teacher).double()(**data | {"speech": data["speech"].double()})
    assert next(teacher.encoder.parameters()).dtype == torch.float32
    torch.testing.assert_close(found["loss_teacher"].float(), expected["loss_teacher"])


def test_a_pupil_becomes_its_teacher(llm):  # noqa: F811
    teacher = build(llm)
    pupil = build(llm, teacher=teacher, teacher_weight=100.0)
    with torch.no_grad():
        pupil.encoder.linear.weight.normal_(std=0.5)
    optimizer = torch.optim.Adam(pupil.encoder.parameters(), lr=3e-2)
    distances = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, stats, _ = pupil(**batch())
        loss.backward()
        optimizer.step()
        distances.append(float(stats["loss_teacher"]))
    assert distances[-1] < 0.05 * distances[0]


def test_pupil_and_teacher_hear_the_same_silence(llm):  # noqa: F811
    teacher = build(llm)
    pupil = build(llm, teacher=teacher).train()
    pupil.features.silence = SilenceAround(16000, before=0.01, after=0.01)  # up to 160 samples around 24 to 40
    pupil.load_state_dict(teacher.state_dict())
    _, stats, _ = pupil(**batch())
    assert stats["loss_teacher"].item() == pytest.approx(0.0, abs=1e-9)


def test_rows_about_one_recording_count_one_by_one(llm):  # noqa: F811
    teacher = build(llm)
    with torch.no_grad():
        teacher.encoder.linear.bias += 0.3
    pupil = build(llm, teacher=teacher)
    _, alone, tokens = pupil(**batch([1]))
    teacher.encoder.rows = 0
    _, twice, both = pupil(**batch([1, 1]))
    assert teacher.encoder.rows == 1 and both == 2 * tokens
    assert twice["loss_teacher"].item() == pytest.approx(alone["loss_teacher"].item(), rel=1e-5)


@pytest.mark.skipif(ops.native is None, reason="the compiled ops were not built")
def test_an_encoder_of_whole_recordings_teaches_natively():
    torch.manual_seed(0)
    model = BestowModel(whole(subsampling="conv1d"), nn.Identity(), nn.Identity(), Windows())
    waveform, lengths = torch.randn(3, 40 * 16), torch.tensor([40 * 16, 16, 23 * 16])
    with torch.no_grad():
        right = model.eval().encode(waveform, lengths)
    teacher = Teacher(model)
    with patch.object(model.encoder, "forward", side_effect=AssertionError("it was not native")):
        found = teacher(waveform, lengths)
    assert found.lengths.tolist() == right.lengths.tolist()
    for mine, other in zip(found.rows(), right.rows(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5)


class Windows(nn.Module):
    """Sixteen samples are a feature frame."""

    def forward(self, waveform, lengths):
        return waveform.unflatten(1, (-1, 16)), lengths // 16


def test_encoders_that_do_not_match_are_named(llm):  # noqa: F811
    teacher = build(llm)
    teacher.encoder.linear = torch.nn.Linear(4, 9)
    with pytest.raises(ValueError, match="the teacher's frames are 9 wide, those of the encoder 6"):
        build(llm, teacher=teacher)(**batch())


def test_a_directory_in_the_yaml_names_the_teacher(tiny_experiment):
    config = tiny_experiment / "config.yaml"
    model, args = BestowTask.build_model_from_file(config)
    args.model_conf["teacher"] = str(tiny_experiment)
    taught = BestowTask.build_model(args)
    trained = torch.load(tiny_experiment / "latest.pth")
    for name, tensor in taught.teacher.model.encoder.state_dict().items():
        assert torch.equal(tensor, trained[f"encoder.{name}"])
    assert model.teacher is None
